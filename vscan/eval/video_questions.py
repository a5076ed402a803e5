"""Questions about clips, as Video-LLaVA's evaluation has them: a list of questions, and a list of right answers.

read_clips             both files -> questions, joined on question_id and not by their order
video_row, clip_row    an answer -> its row, as LLaVA's loader has it, or as Video-LLaVA's
"""

import os
from collections import Counter
from pathlib import Path

from .benchmark import join
from .gold import check_entries, identity, read_json
from .runner import answer_row

ASKED = {"question_id": object, "question": str, "video_name": str}
RIGHT = {"question_id": object, "answer": object}


def read_joined(question_file: str | Path, truth_file: str | Path) -> list[dict]:
    """The questions with their right answers.

    Returns:
        For each what its file says of it, and `answer`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a file of another format, or questions and answers that do not belong together.
    """
    asked = check_entries(read_json(question_file), ASKED, question_file)
    right = check_entries(read_json(truth_file), RIGHT, truth_file)
    joined = join(asked, right, truth_file, identity)
    if None in joined:
        problem = f"{joined.count(None)} have none, such as {identity(asked[joined.index(None)])}"
        raise ValueError(f"{truth_file}: expected an answer to every question of {Path(question_file).name}, {problem}")
    return [{**question, "answer": str(answer["answer"])} for question, answer in zip(asked, joined, strict=True)]


def read_clips(question_file: str | Path, truth_file: str | Path | None = None) -> list[dict]:
    """Read questions about clips, as the commands ask them.

    Args:
        question_file: a list of {video_name, question, question_id}.
        truth_file: a list of {answer, question_id}, in any order; None leaves the answers out.

    Returns:
        For each question_id, text, video (the clip's name), and, with a truth file, answer.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a file of another format, an id that comes twice, or one that only one of the files has.
    """
    for name, file in {"question file": question_file, "truth file": truth_file}.items():
        if file is not None and not os.path.isfile(file):
            raise FileNotFoundError(f"{name}: expected a file, found none at {str(file)!r}")
    entries = read_json(question_file)
    if entries == []:
        raise ValueError(f"question file {str(question_file)!r}: expected at least one question, got none")
    _check_once(check_entries(entries, ASKED, question_file), question_file)
    if truth_file is not None:
        _check_once(check_entries(read_json(truth_file), RIGHT, truth_file), truth_file)
        entries = read_joined(question_file, truth_file)
    for number, entry in enumerate(entries):
        if not entry["video_name"]:
            raise ValueError(f"{question_file}, entry {number}: expected the name of a clip, got ''")
    names = {"question_id": "question_id", "text": "question", "video": "video_name", "answer": "answer"}
    if truth_file is None:
        del names["answer"]
    return [{name: entry[key] for name, key in names.items()} for entry in entries]


def _check_once(entries: list[dict], file: str | Path) -> None:
    """Raise ValueError for an id that comes twice: an answer could not be told from another one."""
    name, number = Counter(map(identity, entries)).most_common(1)[0]
    if number > 1:
        raise ValueError(f"{file}: expected ids that come once, got {number} times {name!r}")


def video_row(question: dict, text: str, model_id: str) -> dict:
    """A row of an answers file: LLaVA's keys, with the right answer behind the model's where it is known."""
    row = answer_row(question, text, model_id)
    if "answer" not in question:
        return row
    return {name: row[name] for name in ("question_id", "prompt", "text")} | {"answer": question["answer"]} | row


def clip_row(question: dict, text: str, model_id: str) -> dict:
    """A row as Video-LLaVA's command writes it; a `</s>` that was written out at its end is no part of an answer."""
    return {
        "id": question["question_id"],
        "question": question["text"],
        "answer": question["answer"],
        "pred": text.strip().removesuffix("</s>").strip(),
    }
