"""GQA's answers as its own eval.py reads them, by LLaVA's name and flags.

python scripts/convert_gqa_for_eval.py --src A.jsonl --dst testdev_balanced_predictions.json
"""

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.gqa import write_submission


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError: if there is no such answers file.
        ValueError: for one that is none, or has two answers to a question.
    """
    parser = Parser(prog="python scripts/convert_gqa_for_eval.py")
    add(parser, "--src", required=True, help="the answers")
    add(parser, "--dst", required=True, help="what eval.py reads")
    args = parser.parse_args(argv)
    print(f"{args.dst}: {write_submission(args.src, args.dst)} predictions")


if __name__ == "__main__":
    run_command(main)
