"""Copy a benchmark's folder with its first questions alone, so that a trial is scored as the whole is.

    python scripts/first_rows.py gqa --data DIR --question-file llava_gqa_testdev_balanced.jsonl --rows 100 --output DIR

The right answers to other questions are left out where a scorer would count these as missing. All other files and
folders are linked.
"""

import csv
import io
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

from vscan.eval import document, gqa, pope, seed_bench, textvqa, video
from vscan.eval.arguments import Parser, add, positive, run_command
from vscan.eval.benchmark import DataFile, read_rows
from vscan.eval.gold import check_entries, read_json
from vscan.eval.mmbench import read_table
from vscan.eval.video_questions import RIGHT

Contents = dict[Path, bytes]  # a file in the benchmark's folder -> what its copy holds


def first_lines(file: Path, rows: int) -> bytes:
    """The first questions of a file with one JSON object a line."""
    return b"".join([line for line in file.read_bytes().splitlines(keepends=True) if line.strip()][:rows])


def first_entries(file: Path, rows: int) -> bytes:
    """The first entries of a JSON list.

    Raises:
        ValueError: if it is none.
    """
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a JSON list, got {type(entries).__name__}")
    return json.dumps(entries[:rows]).encode()


def first_table_rows(file: Path, rows: int) -> bytes:
    """The first rows of MMBench's table; one that shows the picture of another row gets that picture."""
    entries = read_table(file, {"index", "image"})
    pictures = {entry["index"]: entry["image"] for entry in entries}
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(entries[0]) if entries else [], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for entry in entries[:rows]:
        writer.writerow({**entry, "image": pictures.get(entry["image"], entry["image"])})
    return stream.getvalue().encode()


READERS = {".jsonl": first_lines, ".json": first_entries, ".tsv": first_table_rows}


def _present(gold: DataFile, folder: Path) -> list[Path]:
    """Where a file of right answers lies; the scorer, not a trial of the model, complains about one that does not."""
    return [folder / path for path in gold.paths if (folder / path).is_file()][:1]


def _gqa(folder: Path, questions: list[dict]) -> Contents:
    wanted = {str(question["question_id"]) for question in questions}
    return {
        file: json.dumps({name: entry for name, entry in read_json(file).items() if name in wanted}).encode()
        for file in _present(gqa.GOLD, folder)
    }


def _textvqa(folder: Path, questions: list[dict]) -> Contents:
    wanted = {(str(question["question_id"]), textvqa.asked_question(question["text"])) for question in questions}
    contents = {}
    for file in _present(textvqa.GOLD, folder):
        content = read_json(file)
        data = [row for row in content["data"] if (str(row["image_id"]), row["question"].lower()) in wanted]
        contents[file] = json.dumps({**content, "data": data}).encode()
    return contents


def _seed(folder: Path, questions: list[dict]) -> Contents:
    wanted = {str(question["question_id"]) for question in questions}
    contents = {}
    for file in _present(seed_bench.GOLD, folder):
        content = read_json(file)
        kept = [row for row in content["questions"] if str(row["question_id"]) in wanted]
        contents[file] = json.dumps({**content, "questions": kept}).encode()
    return contents


def _pope(folder: Path, questions: list[dict]) -> Contents:
    numbers = Counter(question.get("category") for question in questions)
    labels = {file: numbers[split] for split, gold in pope.LABELS.items() for file in _present(gold, folder)}
    return {file: first_lines(file, number) for file, number in labels.items()}


def _document(folder: Path, questions: list[dict], gold: DataFile) -> Contents:
    wanted = {str(question["question_id"]) for question in questions}
    contents = {}
    for file in _present(gold, folder):
        kept = [entry for entry in document.read_entries(file) if str(entry["questionId"]) in wanted]
        contents[file] = json.dumps({"data": kept}).encode()
    return contents


def _video(folder: Path, questions: list[dict], gold: DataFile) -> Contents:
    wanted = {str(question["question_id"]) for question in questions}
    contents = {}
    for file in _present(gold, folder):
        kept = [entry for entry in check_entries(read_json(file), RIGHT, file) if str(entry["question_id"]) in wanted]
        contents[file] = json.dumps(kept).encode()
    return contents


GOLD = {"gqa": _gqa, "textvqa": _textvqa, "seed_bench": _seed, "pope": _pope}
GOLD |= {benchmark.name: partial(_document, gold=benchmark.files[1]) for benchmark in document.BENCHMARKS}
GOLD |= {benchmark.name: partial(_video, gold=benchmark.files[1]) for benchmark in video.BENCHMARKS}


def contents_of(benchmark: str, folder: Path, question_file: Path, rows: int) -> Contents:
    """What differs from the whole folder.

    Args:
        benchmark: its name.
        folder: the benchmark's.
        question_file: in that folder; of RefCOCO any split, for all that lie beside it.
        rows: questions to keep.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or of another format.
    """
    files = sorted(question_file.parent.glob("refcoco*.json")) if benchmark == "refcoco" else [question_file]
    if question_file.suffix not in READERS:
        raise ValueError(f"question file: expected one that ends in {', '.join(READERS)}, got {str(question_file)!r}")
    if not question_file.is_file():
        raise FileNotFoundError(f"question file: expected a file, found none at {str(question_file)!r}")
    contents = {file: READERS[file.suffix](file, rows) for file in files}
    if benchmark in GOLD:
        asked = json.loads(contents[question_file]) if question_file.suffix == ".json" else read_rows(question_file)
        contents |= GOLD[benchmark](folder, asked[:rows])
    return contents


def copy(folder: Path, output: Path, contents: Contents) -> None:
    """Make a folder like another: files with new contents are written, what holds none of them is linked."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        target = output / path.name
        if target.is_symlink():
            target.unlink()  # of an earlier trial
        if path in contents:
            target.write_bytes(contents[path])
        elif any(path in file.parents for file in contents):
            copy(path, target, contents)
        else:
            os.symlink(path.resolve(), target)


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or of another format.
    """
    parser = Parser(prog="python scripts/first_rows.py")
    parser.add_argument("benchmark", help="its name, such as gqa")
    add(parser, "--data", type=Path, required=True, help="the benchmark's folder")
    add(parser, "--question-file", required=True, help="relative to that folder")
    add(parser, "--rows", type=positive, required=True, help="questions to keep")
    add(parser, "--output", type=Path, required=True, help="the copy")
    args = parser.parse_args(argv)
    contents = contents_of(args.benchmark, args.data, args.data / args.question_file, args.rows)
    copy(args.data, args.output, contents)


if __name__ == "__main__":
    run_command(main)
