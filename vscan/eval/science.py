"""ScienceQA's question file, as LLaVA converts it: a JSON list of conversations, with or without a picture."""

import json
from pathlib import Path

from .questions import LETTER_SUFFIX
from .runner import answer_row


def read_science(file: str | Path, single_pred_prompt: bool = False) -> list[dict]:
    """Read ScienceQA's questions.

    Args:
        file: such as llava_test_CQM-A.json.
        single_pred_prompt: ask for the option's letter.

    Returns:
        For each its question_id, image (where there is one), text (what is asked) and prompt (what the answer's row
        says: the text, with "<image>" before it where there is a picture).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no list, or an entry that is no question, naming it.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"question file: expected a file, found none at {str(file)!r}")
    try:
        entries = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: expected a JSON list, got {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a JSON list, got {type(entries).__name__}")
    return [_question(entry, f"{file}, entry {number}", single_pred_prompt) for number, entry in enumerate(entries)]


def _question(entry, where: str, single_pred_prompt: bool) -> dict:
    try:
        question_id, asked, image = entry["id"], entry["conversations"][0]["value"], entry.get("image")
        text = asked.replace("<image>", "").strip()
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        expected = "an object with id and conversations[0].value"
        raise ValueError(f"{where}: expected {expected}, got {str(entry)[:60]!r}") from error
    if not isinstance(image, str | None):
        raise ValueError(f"{where}: expected image to be a string, got {image!r}")
    if single_pred_prompt:
        text += LETTER_SUFFIX
    question = {"question_id": question_id, "text": text, "prompt": text}
    return question if not image else {**question, "prompt": "<image>\n" + text, "image": image}


def science_row(question: dict, text: str, model_id: str) -> dict:
    """A row of the answers file: the published keys, `prompt` with its "<image>"."""
    return {**answer_row(question, text, model_id), "prompt": question["prompt"]}
