"""POPE: is an object in the picture? Three splits of questions, a mean of three F1.

Labels belong to questions by row. LLaVA's question file is that of AoiDragon/POPE at commit e3e3926, with 2,910 random
questions; later releases have 3,000 and other words, and joined by row they make 45.65 of a random F1 of 87.14.
"""

import re
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join, read_rows
from .gold import SHORT_SUFFIX, percent, read_answers
from .questions import read_questions

QUESTIONS = DataFile(("llava_pope_test.jsonl",), 8910, "questions")
LABELS = {
    "random": DataFile(("coco/coco_pope_random.json",), 2910),
    "popular": DataFile(("coco/coco_pope_popular.json",), 3000),
    "adversarial": DataFile(("coco/coco_pope_adversarial.json",), 3000),
}
RELEASE = "take both files from AoiDragon/POPE at commit e3e3926 (random: 2,910 rows; later releases have 3,000)"


def pope_is_yes(text: str) -> bool:
    """Whether the published code reads an answer as "yes".

    Its quirks: what comes before the first full stop counts, without commas; "No", "no" or "not" between single spaces
    is no, and everything else yes: "NO", "Nope", "no" before a line end, "Not sure" and nothing at all, too.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _is_label(folder: Path, questions: list[dict]) -> list[bool]:
    """For every question whether "yes" is right.

    Raises:
        ValueError: for labels that are not those of the questions.
    """
    if not questions:
        raise ValueError(f"{QUESTIONS.find(folder)}: expected questions, got none")
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        category = question.get("category")
        if category not in tuple(LABELS):
            expected = f"expected a category of {', '.join(LABELS)}, got {category!r}"
            raise ValueError(f"{QUESTIONS.find(folder)}, row {row + 1}: {expected}")
        rows.setdefault(category, []).append(row)
    right = [False] * len(questions)
    for split, numbers in rows.items():
        file = LABELS[split].find(folder)
        labels = read_rows(file)
        if len(labels) != len(numbers):
            counts = f"expected {len(numbers)} labels for the {len(numbers)} {split} questions, got {len(labels)}"
            raise ValueError(f"{file}: {counts}: another release of POPE; {RELEASE}")
        for number, (row, label) in enumerate(zip(numbers, labels, strict=True), start=1):
            question = questions[row]
            words = question["text"].removesuffix(SHORT_SUFFIX)
            if (label.get("image"), label.get("text")) != (question.get("image"), words):
                got = f"{label.get('text')!r} about {label.get('image')!r}"
                expected = f"the label of {words!r} about {question.get('image')!r}"
                raise ValueError(f"{file}, row {number}: expected {expected}, got {got}; {RELEASE}")
            if label.get("label") not in ("yes", "no"):
                raise ValueError(f"{file}, row {number}: expected the label yes or no, got {label.get('label')!r}")
            right[row] = label["label"] == "yes"
    return right


def _split_scores(said: list[bool | None], right: list[bool]) -> dict[str, float]:
    """Of one split, in percent; "yes" is what is to be found. A missing answer (None) is the wrong one."""
    pairs = [(not label if answer is None else answer, label) for answer, label in zip(said, right, strict=True)]
    found = sum(answer and label for answer, label in pairs)
    claimed, there = (sum(values) for values in zip(*pairs, strict=True))
    given = [answer for answer in said if answer is not None]
    return {
        "F1": 200 * found / (claimed + there) if found else 0.0,
        "accuracy": percent([answer == label for answer, label in pairs]),
        "precision": 100 * found / claimed if claimed else 0.0,
        "recall": 100 * found / there if there else 0.0,
        "yes ratio": percent(given) if given else 0.0,
    }


def score(answers: Path, folder: Path) -> Scores:
    """The mean of the splits' F1 in percent (some report accuracy under the name of POPE, which is higher)."""
    questions = read_questions(QUESTIONS.find(folder))
    right = _is_label(folder, questions)
    joined = join(questions, read_answers(answers, with_prompt=True), answers, asked)
    said = [None if answer is None else pope_is_yes(answer["text"]) for answer in joined]
    parts = {}
    for split in LABELS:
        rows = [row for row, question in enumerate(questions) if question["category"] == split]
        if rows:
            parts[split] = _split_scores([said[row] for row in rows], [right[row] for row in rows])
    words = [set(re.findall("[a-z]+", answer["text"].lower())) for answer in joined if answer is not None]
    num_unparsed = sum(not {"yes", "no", "not"} & each for each in words)
    notes = []
    if len(parts) < len(LABELS):
        notes.append(f"only the split {' and '.join(parts)}, of {', '.join(LABELS)}")
    if num_unparsed:
        notes.append(f"{num_unparsed} answers have neither yes nor no; they count as yes, as published")
    return Scores(
        value=_mean(parts, "F1"),
        metric="mean F1 over the splits, in percent",
        parts={**parts, "mean accuracy": _mean(parts, "accuracy")},
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=num_unparsed,
        notes=tuple(notes),
    )


def _mean(parts: dict[str, dict[str, float]], name: str) -> float:
    return sum(part[name] for part in parts.values()) / len(parts)


def check(folder: Path) -> list[str]:
    """The labels must be those of the questions."""
    _is_label(folder, read_questions(QUESTIONS.find(folder)))
    return []


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    folder="pope",
    files=(QUESTIONS, *LABELS.values(), DataFile(("val2014",), purpose="images")),
    score=score,
    check=check,
)
