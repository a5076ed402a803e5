"""DocVQA's or InfoVQA's question file in LLaVA's format, made of the official file with the right answers.

    python scripts/convert_document_questions.py docvqa --data playground/data/eval/docvqa

It is written beside that file, as llava_docvqa_val.jsonl or llava_infovqa_val.jsonl.
"""

from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command
from vscan.eval.document import BENCHMARKS, write_questions

DOCUMENTS = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for an official file that is missing or of another format.
    """
    parser = Parser(prog="python scripts/convert_document_questions.py")
    parser.add_argument("name", choices=list(DOCUMENTS), help="the benchmark's")
    add(parser, "--data", type=Path, required=True, help="the benchmark's folder")
    args = parser.parse_args(argv)
    benchmark = DOCUMENTS[args.name]
    output = args.data / benchmark.files[0].paths[0]
    write_questions(args.data, benchmark, output)
    print(f"{output}: written")


if __name__ == "__main__":
    run_command(main)
