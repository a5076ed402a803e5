"""POPE's numbers, by LLaVA's name and flags; `python -m vscan.eval pope` is the same score.

    python -m llava.eval.eval_pope --annotation-dir pope/coco --question-file pope/llava_pope_test.jsonl \\
        --result-file A.jsonl
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.pope import BENCHMARK, QUESTIONS

from .layout import laid_out


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python -m llava.eval.eval_pope")
    add(parser, "--annotation-dir", required=True, help="folder of coco_pope_random.json and the other labels")
    add(parser, "--question-file", required=True, help="llava_pope_test.jsonl")
    add(parser, "--result-file", required=True, help="the answers")
    args = parser.parse_args(argv)
    with laid_out({"coco": args.annotation_dir, QUESTIONS.paths[0]: args.question_file}) as folder:
        scores = BENCHMARK.score(Path(args.result_file), folder)
    for split, part in scores.parts.items():
        if isinstance(part, dict):
            print(f"Category: {split}")
            print("\n".join(f"{name}: {value:.2f}" for name, value in part.items()))
            print("====================================")
    print(f"Mean F1: {scores.value:.2f} ({scores.num_questions} questions, {scores.num_missing} missing)")


if __name__ == "__main__":
    run_command(main)
