"""GQA's answers as its own eval.py reads them, by LLaVA's name and flags.

python scripts/convert_gqa_for_eval.py --src A.jsonl --dst testdev_balanced_predictions.json
"""

import argparse

from vscan.eval.arguments import add, run_command
from vscan.eval.gold import read_answers, write_json
from vscan.eval.gqa import prediction


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for an answers file that is missing or none.
    """
    parser = argparse.ArgumentParser(prog="python scripts/convert_gqa_for_eval.py", allow_abbrev=False)
    add(parser, "--src", required=True, help="the answers")
    add(parser, "--dst", required=True, help="what eval.py reads")
    args = parser.parse_args(argv)
    rows = read_answers(args.src)
    write_json(args.dst, [{"questionId": row["question_id"], "prediction": prediction(row["text"])} for row in rows])
    print(f"{args.dst}: {len(rows)} predictions")


if __name__ == "__main__":
    run_command(main)
