"""TextVQA's validation questions, asked with the words that an OCR system read: soft accuracy, as LLaVA counts it."""

from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import check_entries, check_words, percent, read_answers, read_json, unjoined
from .normalise import soft_accuracy
from .questions import read_questions
from .soft import METRIC, num_empty

QUESTIONS = DataFile(("llava_textvqa_val_v051_ocr.jsonl",), 5000, "questions")
GOLD = DataFile(("TextVQA_0.5.1_val.json",), 5000)
IMAGES = DataFile(("train_images",), purpose="images")
OCR = "Reference OCR token: "


def asked_question(prompt: str) -> str:
    """The question in a prompt, which is what joins an answer with the right ones; ids are those of images.

    Args:
        prompt: the question, its OCR words (after "Reference OCR token: ", also where there are none) and the suffix,
            a line each, the first two in any order; or the question and the suffix.

    Returns:
        The question in lower case.

    Raises:
        ValueError: for a prompt of another form.
    """
    lines = prompt.split("\n")
    if len(lines) == 3 and OCR in prompt:
        return lines[prompt.startswith(OCR.rstrip())].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise ValueError(
        f"expected a prompt of a question, a line {OCR!r}... and a suffix, or a question and a suffix, got {prompt!r}"
    )


def _key(row: dict) -> tuple[str, str]:
    return str(row["question_id"]), row["asked"]


def _read_asked(rows: list[dict], file: str | Path, key: str) -> list[dict]:
    """Rows with what they asked, out of the prompt that lies under a key."""
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append({**row, "asked": asked_question(row[key])})
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}") from error
    return found


def read_gold(folder: str | Path) -> list[dict]:
    """The questions with what ten people answered.

    Returns:
        For each question_id (the image's), `asked` (the question in lower case) and answers.

    Raises:
        FileNotFoundError: if the file is not in the folder.
        ValueError: for a file of another format, naming the entry.
    """
    file = GOLD.find(folder)
    content = read_json(file)
    entries = content.get("data") if isinstance(content, dict) else content
    check_entries(entries, {"image_id": object, "question": str, "answers": list}, file)
    check_words(entries, file)
    return [
        {"question_id": entry["image_id"], "asked": entry["question"].lower(), "answers": entry["answers"]}
        for entry in entries
    ]


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """Soft accuracy over all questions.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice, or whose prompts are of another form.
    """
    questions = read_gold(folder)
    answers = _read_asked(read_answers(answers_file, with_prompt=True), answers_file, "prompt")
    joined = join(questions, answers, answers_file, _key)
    values = [
        0.0 if answer is None else soft_accuracy(answer["text"], question["answers"])
        for question, answer in zip(questions, joined, strict=True)
    ]
    without = sum(OCR not in answer["prompt"] for answer in answers)
    return Scores(
        value=percent(values),
        metric=METRIC,
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=num_empty(joined),
        notes=(f"{without} questions were asked without OCR words, which is another task.",) if without else (),
    )


def check(folder: str | Path) -> list[str]:
    """Whether the question file and the right answers belong together."""
    file = QUESTIONS.find(folder)
    asked = _read_asked(read_questions(file), file, "text")
    return unjoined(map(_key, asked), map(_key, read_gold(folder)), GOLD.find(folder).name)


BENCHMARK = Benchmark("textvqa", "TextVQA", "textvqa", (QUESTIONS, GOLD, IMAGES), score, check)
