"""Question files: one JSON object a line, with question_id, text, and image where there is one."""

import json
import math
import os
from pathlib import Path

from .benchmark import numbered_rows

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def read_questions(file: str | Path) -> list[dict]:
    """Read a question file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no question, naming the line.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"question file: expected a file, found none at {str(file)!r}")
    questions = []
    for number, question in numbered_rows(file):
        missing = {"question_id", "text"} - question.keys()
        if missing:
            raise ValueError(f"{file}, line {number}: expected the keys {sorted(missing)}, got {str(question)[:60]!r}")
        for key in ("text", "image"):
            value = question.get(key)
            if not isinstance(value, str) and (value is not None or key == "text"):
                raise ValueError(f"{file}, line {number}: expected {key} to be a string, got {value!r}")
        check_id(question["question_id"], f"{file}, line {number}")
        questions.append(question)
    return questions


def check_id(question_id, where: str) -> None:
    """Raise ValueError for a question id that is, or holds, no number: it is not even equal to itself."""
    try:
        json.dumps(question_id, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{where}: expected a question id with finite numbers, got {question_id!r}") from error


def check_asked(questions: list[dict], file: str | Path) -> None:
    """Check what was read from a question file of whatever kind.

    Raises:
        ValueError: for no question at all, or an id that is no number.
    """
    if not questions:
        raise ValueError(f"question file {str(file)!r}: expected at least one question, got none")
    for number, question in enumerate(questions):
        check_id(question.get("question_id"), f"{file}, entry {number}")


def chunk(rows: list, num_chunks: int, index: int) -> list:
    """One of `num_chunks` runs of rows of the published size, ceil(n / num_chunks); those past the end are empty.

    Raises:
        ValueError: for an index outside 0 .. num_chunks - 1.
    """
    if num_chunks < 1 or not 0 <= index < num_chunks:
        raise ValueError(f"chunk-idx: expected 0 to num-chunks - 1, got {index} of {num_chunks}")
    size = math.ceil(len(rows) / num_chunks)
    return rows[index * size : (index + 1) * size]


def image_file(folder: str | Path, image: str, what: str = "image") -> Path:
    """Where a question's image lies, or its clip, which `what` says.

    Raises:
        ValueError: if that is outside the folder. Links are followed: who made the folder may point anywhere.
    """
    path = Path(image)
    if path.is_absolute() or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        article = "an" if what == "image" else "a"
        raise ValueError(f"expected {article} {what} inside the {what} folder {str(folder)!r}, got {image!r}")
    return Path(folder) / path


def check_folder(folder: str | Path) -> None:
    """Raise FileNotFoundError if the image folder is none."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"image folder: expected a folder, found none at {str(folder)!r}")


def check_images(questions: list[dict], folder: str | Path) -> None:
    """Check, before any model is loaded, that the images that the questions name are in the folder.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: for a name that leaves the folder.
    """
    check_folder(folder)
    images = dict.fromkeys(question["image"] for question in questions if question.get("image"))
    missing = [image for image in images if not os.path.isfile(image_file(folder, image))]
    if missing:
        raise FileNotFoundError(
            f"image folder {str(folder)!r}: expected the {len(images)} images that the questions name, "
            f"{len(missing)} are missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
