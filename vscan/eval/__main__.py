"""Score answers, check data, and make the paper's table; imports no torch.

python -m vscan.eval pope --answers A.jsonl --data DIR [--output scores.json]
python -m vscan.eval all --answers OUT --data DIR
python -m vscan.eval check DIR
python -m vscan.eval report OUT_DIR... [--output DIR]
"""

import argparse
import sys
from pathlib import Path

from .arguments import add, run_command
from .benchmarks import BENCHMARKS
from .check import check_all, lines
from .report import report
from .results import evaluate, evaluate_all

LAYOUT = "OUT/<family>/<benchmark>/<method-budget>/answers.jsonl"


def make_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="python -m vscan.eval",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog=f"benchmarks: {', '.join(BENCHMARKS)}",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME | all | check | report")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, allow_abbrev=False, help=f"score answers to {benchmark.title}")
        add(command, "--answers", required=True, type=Path, help="answers as the evaluation commands write them")
        in_eval = f"the benchmark's folder in LLaVA's layout, eval/{benchmark.folder}"
        add(command, "--data", required=True, type=Path, help=in_eval)
        scores = "scores to write; default: scores.json beside answers.jsonl, NAME.scores.json beside NAME.jsonl"
        add(command, "--output", type=Path, help=scores)
    command = commands.add_parser("all", allow_abbrev=False, help="score all answers in a folder of the scripts")
    add(command, "--answers", required=True, type=Path, metavar="OUT", help=f"folder or a part of it: {LAYOUT}")
    add(command, "--data", required=True, type=Path, help="LLaVA's eval folder, with a folder a benchmark")
    command = commands.add_parser("check", allow_abbrev=False, help="say which data is in place and right")
    command.add_argument("data", metavar="DIR", help="LLaVA's eval folder, with a folder a benchmark")
    command = commands.add_parser("report", allow_abbrev=False, help="make the paper's table of several runs")
    command.add_argument("folders", nargs="+", metavar="OUT_DIR", help=f"with scores beside the answers: {LAYOUT}")
    add(command, "--output", help="folder for report.md, report.csv and report.png; default: the first OUT_DIR")
    return parser


def main(argv: list[str]) -> None:
    """Run a command.

    Raises:
        FileNotFoundError, ValueError: for bad input.
    """
    args = make_parser().parse_args(argv)
    if args.command == "check":
        findings = check_all(args.data)
        print("\n".join(line for finding in findings for line in lines(finding)))
        if any(finding.problems or finding.missing for finding in findings):
            sys.exit(1)
    elif args.command == "report":
        print(report(args.folders, args.output or args.folders[0]), end="")
    elif args.command == "all":
        if evaluate_all(args.answers, args.data):
            sys.exit(2)
    else:
        evaluate(BENCHMARKS[args.command], args.answers, args.data, args.output)


if __name__ == "__main__":
    run_command(main)
