"""VizWiz's answers as the server takes them, by LLaVA's name and flags.

    python scripts/convert_vizwiz_for_submission.py --annotation-file vizwiz/llava_test.jsonl --result-file A.jsonl \\
        --result-upload-file upload.json
"""

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.vizwiz import write_submission


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python scripts/convert_vizwiz_for_submission.py")
    add(parser, "--annotation-file", required=True, help="the question file")
    add(parser, "--result-file", required=True, help="the answers")
    add(parser, "--result-upload-file", required=True, help="what the server takes")
    args = parser.parse_args(argv)
    write_submission(args.result_file, args.annotation_file, args.result_upload_file)
    print(f"{args.result_upload_file}: written")


if __name__ == "__main__":
    run_command(main)
