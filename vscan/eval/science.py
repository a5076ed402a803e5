"""ScienceQA's question file, as LLaVA converts it: a JSON list of conversations, with or without a picture.

read_science, science_row    the file -> questions, an answer -> its row
science_letter               what was said -> the letter that the published code reads there
score                        accuracy over all questions, and over those with a picture
"""

import os
import re
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import percent, read_answers, read_json
from .questions import LETTER_SUFFIX
from .runner import answer_row

LETTERS = "ABCDE"
QUESTIONS = DataFile(("llava_test_CQM-A.json",), 4241, "questions")
ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # the stop is a wildcard, as published


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
    if not os.path.isfile(file):
        raise FileNotFoundError(f"question file: expected a file, found none at {str(file)!r}")
    entries = _entries(file)
    return [_question(entry, f"{file}, entry {number}", single_pred_prompt) for number, entry in enumerate(entries)]


def _entries(file: str | Path) -> list:
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a JSON list, got {type(entries).__name__}")
    return entries


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


def science_letter(text: str) -> str | None:
    """The letter of an answer as LLaVA's eval_science_qa reads it; None is what is "FAILED" there.

    Its quirks: a bare letter from A to E counts, and so do a letter before ". " and exactly one "The answer is X."
    (with any character for the stop); "A.", "(A)" and a letter before a line end are not read.
    """
    if text in tuple(LETTERS):
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def _right_letters(file: Path) -> list[str]:
    """What is right, from the question file itself: it says the same as problems.json."""
    letters = []
    for number, entry in enumerate(_entries(file)):
        try:
            letter = entry["conversations"][1]["value"]
        except (IndexError, KeyError, TypeError):
            letter = None
        if letter not in tuple(LETTERS):
            raise ValueError(f"{file}, entry {number}: expected the right letter as its second turn, got {letter!r}")
        letters.append(letter)
    return letters


def _key(row: dict) -> tuple[str, str]:
    """Id and question; whether the letter was asked for makes another prompt of the same question."""
    return str(row["question_id"]), row.get("prompt", row["text"]).removeprefix("<image>\n").removesuffix(LETTER_SUFFIX)


def score(answers: Path, folder: Path) -> Scores:
    """Accuracy in percent; a letter that is none of the question's options is wrong.

    Which questions have a picture is told by the question file: the published code asks the stored prompt, so that a
    missing answer leaves its average.
    """
    file = QUESTIONS.find(folder)
    questions, right = read_science(file), _right_letters(file)
    if not any("image" in question for question in questions):
        raise ValueError(f"{file}: expected questions with an image, got none among {len(questions)}")
    joined = join(questions, read_answers(answers, with_prompt=True), answers, _key)
    letters = [answer and science_letter(answer["text"]) for answer in joined]
    correct = [said == letter for said, letter in zip(letters, right, strict=True)]
    with_image = [hit for hit, question in zip(correct, questions, strict=True) if "image" in question]
    return Scores(
        value=percent(with_image),
        metric="accuracy over the questions with an image (IMG), in percent",
        parts={
            "IMG": percent(with_image),
            "total": percent(correct),
            "questions with an image": len(with_image),
        },
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=sum(answer is not None and letter is None for answer, letter in zip(joined, letters, strict=True)),
    )


def check(folder: Path) -> list[str]:
    """Every question must have its right letter."""
    _right_letters(QUESTIONS.find(folder))
    return []


BENCHMARK = Benchmark(
    name="science_qa",
    title="SQA",
    folder="scienceqa",
    files=(QUESTIONS, DataFile(("images/test",), purpose="images")),
    score=score,
    check=check,
)
