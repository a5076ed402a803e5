"""MM-Vet's answers as its evaluator, a judge, reads them, by LLaVA's name and flags.

python scripts/convert_mmvet_for_eval.py --src A.jsonl --dst results.json
"""

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.gold import read_answers, write_json
from vscan.eval.mm_vet import name_of


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError: if there is no such answers file.
        ValueError: for one that is none, or has two answers to a question.
    """
    parser = Parser(prog="python scripts/convert_mmvet_for_eval.py")
    add(parser, "--src", required=True, help="the answers")
    add(parser, "--dst", required=True, help="what the evaluator reads")
    args = parser.parse_args(argv)
    rows = read_answers(args.src)
    results = {name_of(row["question_id"]): row["text"] for row in rows}
    if len(results) < len(rows):
        raise ValueError(f"{args.src}: expected one answer a question, got {len(rows)} answers to {len(results)}")
    write_json(args.dst, results)
    print(f"{args.dst}: {len(results)} answers")


if __name__ == "__main__":
    run_command(main)
