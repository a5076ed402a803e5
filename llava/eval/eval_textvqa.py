"""TextVQA's accuracy, by LLaVA's name and flags; `python -m vscan.eval textvqa` is the same score.

python -m llava.eval.eval_textvqa --annotation-file textvqa/TextVQA_0.5.1_val.json --result-file A.jsonl
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.textvqa import BENCHMARK, GOLD

from .layout import laid_out


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python -m llava.eval.eval_textvqa")
    add(parser, "--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    results = parser.add_mutually_exclusive_group(required=True)
    add(results, "--result-file", help="the answers")
    add(results, "--result-dir", help="folder of several answers files")
    args = parser.parse_args(argv)
    files = [Path(args.result_file)] if args.result_file else answers_files(Path(args.result_dir))
    with laid_out({GOLD.paths[0]: args.annotation_file}) as folder:
        for file in files:
            scores = BENCHMARK.score(file, folder)
            print(file.stem)
            print(f"Samples: {scores.num_questions} ({scores.num_missing} missing)\nAccuracy: {scores.value:.2f}%\n")


def answers_files(folder: Path) -> list[Path]:
    """The answers files of a folder, without what lies beside each.

    Raises:
        FileNotFoundError: if there are none.
    """
    files = [
        file for file in sorted(folder.glob("*.jsonl")) if not file.name.endswith(("stats.jsonl", "skipped.jsonl"))
    ]
    if not files:
        raise FileNotFoundError(f"result dir: expected answers files (*.jsonl) in {str(folder)!r}, found none")
    return files


if __name__ == "__main__":
    run_command(main)
