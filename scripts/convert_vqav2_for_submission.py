"""VQAv2's answers as the server takes them, by LLaVA's name and flags.

    python scripts/convert_vqav2_for_submission.py --dir vqav2 --split llava_vqav2_mscoco_test-dev2015 --ckpt NAME

reads DIR/answers/SPLIT/NAME/merge.jsonl and writes DIR/answers_upload/SPLIT/NAME.json.
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.vqav2 import write_submission


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or do not belong together.
    """
    parser = Parser(prog="python scripts/convert_vqav2_for_submission.py")
    add(parser, "--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="the benchmark's folder")
    add(parser, "--split", default="llava_vqav2_mscoco_test-dev2015", help="name of the question file")
    add(parser, "--ckpt", required=True, help="name of the answers' folder")
    args = parser.parse_args(argv)
    source = args.dir / "answers" / args.split / args.ckpt / "merge.jsonl"
    output = args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
    write_submission(source, args.dir, output)
    print(f"{output}: written")


if __name__ == "__main__":
    run_command(main)
