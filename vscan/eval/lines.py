"""Files that hold rows of JSON, one a line, and what lies beside them: how they are written, and read again."""

import json
import os
from pathlib import Path

from .benchmark import parse_json


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
    """A row of an answers file, which has its question's id; ValueError as in `parse_object`."""
    expected = "an answer, a JSON object with question_id"
    row = parse_object(content, where, expected)
    if "question_id" not in row:
        raise ValueError(f"{where}: expected {expected}, got {str(row)[:60]!r}")
    return row
