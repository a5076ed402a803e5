"""MMBench's table, as LLaVA asks it: tab-separated, the pictures inside it as base64."""

import csv
import os
import sys
from pathlib import Path

from .benchmark import check_utf8
from .questions import LETTER_SUFFIX

LETTERS = "ABCD"
SUFFIXES = {"en": LETTER_SUFFIX, "cn": "\n请直接回答选项字母。"}


def read_mmbench(file: str | Path) -> list[dict]:
    """Read MMBench's rows.

    An empty cell says that there is nothing; words such as "None" are an option like others (the published code, by
    way of pandas, ends the options there). A row whose image is a number shows the picture of the row of that index.

    Returns:
        For each its index (int where it is one), question, hint ("" for none), options and image_base64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a table without the columns, or a row without a picture, naming it.
    """
    rows = read_table(file, {"index", "question", "A", "image"})
    pictures = {row["index"]: row["image"] for row in rows}
    return [_entry(row, pictures, f"{file}, row {number}") for number, row in enumerate(rows)]


def read_table(file: str | Path, columns: set[str]) -> list[dict[str, str]]:
    """Read a table with tabs between its columns; cells are strings, whatever they say.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a table that is none, or lacks one of `columns`, or has a row of more cells than columns.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"question file: expected a file, found none at {str(file)!r}")
    try:
        check_utf8(Path(file).read_bytes(), file)
    except ValueError as error:
        raise ValueError(f"{file}: expected a table with tabs between its columns, got other text: {error}") from error
    limit = csv.field_size_limit(sys.maxsize)  # a picture is longer than csv's limit
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines, delimiter="\t", restval="")
            missing = columns - set(table.fieldnames or ())
            if missing:
                raise ValueError(f"{file}: expected the columns {sorted(missing)}, got {table.fieldnames}")
            rows = list(table)
    except csv.Error as error:
        raise ValueError(f"{file}: expected a table with tabs between its columns, got {error}") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows):
        if None in row:  # where csv puts what has no column
            expected = len(table.fieldnames)
            raise ValueError(f"{file}, row {number}: expected {expected} cells, got {expected + len(row[None])}")
    return rows


def _entry(row: dict, pictures: dict[str, str], where: str) -> dict:
    picture = row["image"] or ""
    if picture.isdecimal():
        picture = pictures.get(picture) or ""
    if not row["index"] or not row["question"] or not picture or picture.isdecimal():
        raise ValueError(f"{where}: expected an index, a question and a picture, got index {row['index']!r}")
    options = []
    for letter in LETTERS:
        if not row.get(letter):
            break
        options.append(row[letter])
    return {
        "index": int(row["index"]) if row["index"].isdecimal() else row["index"],
        "question": row["question"],
        "hint": row.get("hint") or "",
        "options": options,
        "image_base64": picture,
    }


def rounds(entry: dict, all_rounds: bool = False, single_pred_prompt: bool = False, lang: str = "en") -> list[dict]:
    """The questions that are asked about one row.

    Args:
        entry: from `read_mmbench`.
        all_rounds: ask once for every rotation of the options.
        single_pred_prompt: ask for the option's letter, in `lang` ("en" or "cn").

    Returns:
        For each round what `model_vqa` needs (question_id, text, image_base64), and what its row says: prompt (the
        text without the suffix), round_id, options and option_char.
    """
    asked = []
    for number in range(max(1, len(entry["options"])) if all_rounds else 1):
        options = entry["options"][number:] + entry["options"][:number]
        letters = LETTERS[: len(options)]
        lines = [entry["hint"]] * bool(entry["hint"]) + [entry["question"]]
        lines += [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
        prompt = "\n".join(lines)
        asked.append(
            {
                "question_id": entry["index"],
                "text": prompt + (SUFFIXES[lang] if single_pred_prompt else ""),
                "image_base64": entry["image_base64"],
                "prompt": prompt,
                "round_id": number,
                "options": options,
                "option_char": list(letters[number:] + letters[:number]),
            }
        )
    return asked


def mmbench_row(question: dict, text: str, model_id: str) -> dict:
    """A row of the answers file: exactly the published keys, in their order."""
    import shortuuid  # help and refusals do without

    return {
        "question_id": question["question_id"],
        "round_id": question["round_id"],
        "prompt": question["prompt"],
        "text": text,
        "options": question["options"],
        "option_char": question["option_char"],
        "answer_id": shortuuid.uuid(),
        "model_id": model_id,
        "metadata": {},
    }
