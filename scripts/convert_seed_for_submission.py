"""SEED-Bench's answers as its leaderboard takes them, and their accuracies, by LLaVA's name and flags.

    python scripts/convert_seed_for_submission.py --annotation-file seed_bench/SEED-Bench.json --result-file A.jsonl \\
        --result-upload-file upload.jsonl
"""

from llava.eval.layout import laid_out
from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.seed_bench import BENCHMARK, GOLD, write_submission


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python scripts/convert_seed_for_submission.py")
    add(parser, "--annotation-file", required=True, help="SEED-Bench.json")
    add(parser, "--result-file", required=True, help="the answers")
    add(parser, "--result-upload-file", required=True, help="what the leaderboard takes")
    args = parser.parse_args(argv)
    with laid_out({GOLD.paths[0]: args.annotation_file}) as folder:
        scores = BENCHMARK.score(args.result_file, folder)
        write_submission(args.result_file, folder, args.result_upload_file)
    for name, value in {**scores.parts["dimensions"], "total": scores.value}.items():
        print(f"{name}: {value:.2f}%")
    for kind in ("image", "video"):
        if kind in scores.parts:
            print(f"{kind}: {scores.parts[kind]:.2f}%")
    print(f"{args.result_upload_file}: {scores.num_questions} predictions, {scores.num_missing} of them empty")


if __name__ == "__main__":
    run_command(main)
