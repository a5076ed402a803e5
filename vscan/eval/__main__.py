"""Score answers, check data, and make the paper's table; imports no torch.

python -m vscan.eval pope --answers A.jsonl --data DIR [--output scores.json]
python -m vscan.eval all --answers OUT --data DIR
python -m vscan.eval check DIR
python -m vscan.eval report OUT_DIR... [--output DIR]
"""

import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from .arguments import Parser, add, run_command
from .benchmarks import BENCHMARKS

LAYOUT = "OUT/<family>/<benchmark>/<method-budget>/answers.jsonl"


def make_parser() -> Parser:
    """The commands and their flags."""
    parser = Parser(
        prog="python -m vscan.eval",
        formatter_class=RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=f"benchmarks: {', '.join(BENCHMARKS)}",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME | all | check | report")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=f"score answers to {benchmark.title}")
        add(command, "--answers", required=True, type=Path, help="answers as the evaluation commands write them")
        in_eval = f"the benchmark's folder in LLaVA's layout, eval/{benchmark.folder}"
        add(command, "--data", required=True, type=Path, help=in_eval)
        scores = "scores to write; default: scores.json beside answers.jsonl, NAME.scores.json beside NAME.jsonl"
        add(command, "--output", type=Path, help=scores)
    command = commands.add_parser("all", help="score all answers in a folder of the scripts")
    add(command, "--answers", required=True, type=Path, metavar="OUT", help=f"folder or a part of it: {LAYOUT}")
    add(command, "--data", required=True, type=Path, help="LLaVA's eval folder, with a folder a benchmark")
    command = commands.add_parser("check", help="say which data is in place and right")
    command.add_argument("data", metavar="DIR", help="LLaVA's eval folder, with a folder a benchmark")
    command = commands.add_parser("report", help="make the paper's table of several runs")
    command.add_argument("folders", nargs="+", metavar="OUT_DIR", help=f"with scores beside the answers: {LAYOUT}")
    add(command, "--output", help="folder for report.md, report.csv and report.png; default: the first OUT_DIR")
    return parser


def main(argv: list[str]) -> None:
    """Run a command.

    Raises:
        FileNotFoundError, ValueError: for bad input.
    """
    args = make_parser().parse_args(argv)
    # What each needs comes now: --help, and a wrong flag, do without numpy.
    if args.command == "check":
        from .check import check_all, lines

        findings = check_all(args.data)
        print("\n".join(line for finding in findings for line in lines(finding)))
        if any(finding.problems or finding.missing for finding in findings):
            sys.exit(1)
    elif args.command == "report":
        from .report import report

        print(report(args.folders, args.output or args.folders[0]), end="")
    elif args.command == "all":
        from .results import evaluate_all

        if evaluate_all(args.answers, args.data):
            sys.exit(2)
    else:
        from .results import evaluate

        evaluate(BENCHMARKS[args.command], args.answers, args.data, args.output)


if __name__ == "__main__":
    run_command(main)
