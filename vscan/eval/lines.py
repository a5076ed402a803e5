"""Files that hold rows of JSON, one a line, and what lies beside them: how they are written, and read again."""

import json
import os
from pathlib import Path

from .benchmark import parse_json

NAMES = (("question_id", "text"), ("id", "pred"))  # of a row's question and of its answer


def beside(file: Path, name: str) -> Path:
    """The file that lies beside another one, under its name and one more."""
    return file.with_name(f"{file.name}.{name}")


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a file; what follows the last line end is a row that was cut."""
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def as_lines(rows: list[dict]) -> bytes:
    """Rows as the content of a file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is either not there or complete."""
    temporary = beside(file, "tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def parse_object(content: bytes, where: str, expected: str) -> dict:
    """A JSON object that we have written.

    Raises:
        ValueError: where it is none any more, naming the place and what was expected there.
    """
    try:
        row = parse_json(content)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected {expected}, got {content.decode(errors='replace').strip()[:60]!r}")
    return row


def parse_answer(content: bytes, where: str) -> dict:
    """The question_id and text of a row of an answers file, as LLaVA calls them; Video-LLaVA says id and pred.

    Raises:
        ValueError: as in `parse_object`.
    """
    expected = "an answer, a JSON object with question_id and text"
    row = parse_object(content, where, expected)
    for name, text in NAMES:
        if name in row and isinstance(row.get(text), str):
            return {"question_id": row[name], "text": row[text]}
    raise ValueError(f"{where}: expected {expected}, got {str(row)[:60]!r}")


def read_record(file: Path) -> dict:
    """The record of a run, `run.json` beside its answers; ValueError where it is none any more."""
    record = parse_object(file.read_bytes(), str(file), "the record of a run, a JSON object")
    for name, kind in {"reduction": dict, "model_path": str}.items():
        if not isinstance(record.get(name), kind | None):
            raise ValueError(f"{file}: expected {name} to be of type {kind.__name__}, got {record[name]!r}")
    return record


def check_stats(row: dict, where: str) -> None:
    """Check the stats of an answer; what was lost may be missing.

    Raises:
        ValueError: for a value of another type than was written, naming it.
    """
    kinds = {"row": int, "visual_tokens": int, "seconds": int | float, "shared_seconds": int | float}
    wrong = [name for name, kind in kinds.items() if name in row and not _is_number(row[name], kind)]
    if "stages" in row and not _are_pairs(row["stages"]):
        wrong.append("stages")
    if wrong:
        raise ValueError(f"{where}: expected an answer's stats, got {wrong[0]} {row[wrong[0]]!r}")


def _is_number(value, kind) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value >= 0


def _are_pairs(stages) -> bool:
    """Whether these are a layer and a number of tokens each."""
    return isinstance(stages, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_number(value, int | float) for value in pair)
        for pair in stages
    )
