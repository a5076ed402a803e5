"""Draw the benchmark: pictures, questions with answers, and the same in the formats of the real benchmarks.

    python -m playground.scenes --split test --number 500 --out DIR

`vscan.compare --data DIR` reads it. What a scene is, is said in `playground.scenes.world`; which files there are, in
`playground.scenes.files`. Answers are balanced where the number is a multiple of 16.
"""

from collections import Counter
from pathlib import Path

from vscan.eval.arguments import Parser, add, not_negative, positive, run_command
from vscan.eval.questions import read_questions

SPLITS = ("train", "validation", "test")  # of `playground.scenes.world`: --help and wrong flags need no numpy


def summary(rows: list[dict]) -> str:
    """A table with a line a kind: how many questions, what a constant answer gets at best, chance, the answers.

    Chance is that of the best answer that a question's own wording allows: "left or right" is one of two.
    """
    from .questions import KINDS

    lines = [f"{'kind':<10} {'questions':>9} {'constant':>8} {'chance':>7}  answers"]
    for kind, chance in KINDS.items():
        answers = Counter(str(row["answer"]) for row in rows if row["category"] == kind)
        total, most = answers.total(), max(answers.values())
        shown = f"{len(answers)} different, each {min(answers.values())} to {most} times"
        if len(answers) <= 4:
            shown = ", ".join(f"{answer} {times}" for answer, times in sorted(answers.items()))
        lines.append(f"{kind:<10} {total:>9} {most / total:>8.1%} {chance:>7.1%}  {shown}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileExistsError: for a folder with something else in it.
    """
    parser = Parser(prog="python -m playground.scenes")
    add(parser, "--split", required=True, choices=SPLITS, help="no scene is in two of them")
    add(parser, "--number", required=True, type=positive, help="of scenes; each has six questions")
    add(parser, "--out", required=True, type=Path, help="folder to make")
    add(parser, "--seed", default=0, type=not_negative, help="another one draws another benchmark; default: 0")
    add(parser, "--blank", action="store_true", help="the same questions about grey pictures")
    args = parser.parse_args(argv)

    from .files import write_benchmark

    write_benchmark(**vars(args))
    print(summary(read_questions(args.out / "questions.jsonl")))


if __name__ == "__main__":
    run_command(main)
