"""Question files: one JSON object a line, with question_id, text, and image where there is one."""

import json
import math
from pathlib import Path


def read_questions(file: str | Path) -> list[dict]:
    """Read a question file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no question, naming the line.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"question file: expected a file, found none at {str(file)!r}")
    questions = []
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            shown = line.decode(errors="replace")[:60]
            try:
                question = json.loads(line.decode())
            except ValueError as error:  # no JSON, or no UTF-8
                raise ValueError(f"{file}, line {number}: expected a JSON object, got {shown!r}") from error
            missing = {"question_id", "text"} - set(question if isinstance(question, dict) else ())
            if missing:
                raise ValueError(f"{file}, line {number}: expected the keys {sorted(missing)}, got {shown!r}")
            questions.append(question)
    return questions


def chunk(rows: list, num_chunks: int, index: int) -> list:
    """One of `num_chunks` runs of rows of the published size, ceil(n / num_chunks); those past the end are empty.

    Raises:
        ValueError: for an index outside 0 .. num_chunks - 1.
    """
    if num_chunks < 1 or not 0 <= index < num_chunks:
        raise ValueError(f"chunk-idx: expected 0 to num-chunks - 1, got {index} of {num_chunks}")
    size = math.ceil(len(rows) / num_chunks)
    return rows[index * size : (index + 1) * size]


def check_images(questions: list[dict], folder: str | Path) -> None:
    """Raise FileNotFoundError if images that the questions name are not in the folder; before any model is loaded."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"image folder: expected a folder, found none at {str(folder)!r}")
    images = dict.fromkeys(question["image"] for question in questions if question.get("image"))
    missing = [image for image in images if not (Path(folder) / image).is_file()]
    if missing:
        raise FileNotFoundError(
            f"image folder {str(folder)!r}: expected the {len(images)} images that the questions name, "
            f"{len(missing)} are missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
