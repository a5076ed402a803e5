"""MMBench's answers as the server takes them (xlsx), by LLaVA's name and flags.

    python scripts/convert_mmbench_for_submission.py --annotation-file mmbench/mmbench_dev_20230712.tsv \\
        --result-dir DIR --upload-dir DIR --experiment NAME

reads RESULT_DIR/NAME.jsonl and writes UPLOAD_DIR/NAME.xlsx.
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.mmbench_scores import write_submission


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python scripts/convert_mmbench_for_submission.py")
    add(parser, "--annotation-file", required=True, help="the table that was asked")
    add(parser, "--result-dir", type=Path, required=True, help="folder of the answers")
    add(parser, "--upload-dir", type=Path, required=True, help="folder for what the server takes")
    add(parser, "--experiment", required=True, help="name of the answers, without .jsonl")
    args = parser.parse_args(argv)
    output = args.upload_dir / f"{args.experiment}.xlsx"
    write_submission(args.result_dir / f"{args.experiment}.jsonl", args.annotation_file, output)
    print(f"{output}: written")


if __name__ == "__main__":
    run_command(main)
