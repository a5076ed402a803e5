"""Is an answer right? Words are compared as words, boxes by how much they overlap. Imports no torch."""

import math
import re
from dataclasses import dataclass

Box = tuple[float, float, float, float]

LEAST_IOU = 0.5  # of a box that is right
NUMBER = r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*"
# What tables call the questions without a category, and their columns, which no category may be called.
NO_CATEGORY = "all"
COLUMNS = ("label", "tokens", "questions", "mean", "difference", "difference to dense", "low", "high", "retained")
COLUMNS += ("retained %", "tokens per layer", "seconds", "unparsable", "no box")
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    Args:
        correct: whether it is right.
        parsed: False where a box was asked for and the answer holds none; such an answer is wrong.
    """

    correct: bool
    parsed: bool = True


def is_box(answer) -> bool:
    """Whether a question's answer is four numbers rather than words."""
    numbers = isinstance(answer, list | tuple) and len(answer) == 4
    return numbers and all(isinstance(value, int | float) and not isinstance(value, bool) for value in answer)


def parse_box(text: str) -> Box | None:
    """The first box x1, y1, x2, y2 in a text, such as "[0.25, 0.50, 0.33, 0.67]"; None where there is none."""
    found = BOX.search(text)
    box = tuple(map(float, found.groups())) if found else (math.inf,)
    return box if all(map(math.isfinite, box)) else None  # a number of 400 digits is infinite


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; a box whose sides are not in order covers nothing."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    both = area(max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    union = area(*one) + area(*other) - both
    # Where one box is inside out, the corners of both may still enclose something.
    return both / union if area(*one) and area(*other) else 0.0


def normalise(text: str) -> str:
    """Lower case, without spaces around it and without one full stop at its end."""
    return text.strip().lower().removesuffix(".").strip()


def score(text: str, answer: str | list) -> Score:
    """Compare what a model said with a question's answer.

    Args:
        text: what the model said.
        answer: the right words, a list of words that are all right, or a box as four numbers, relative to the picture.
    """
    if is_box(answer):
        box = parse_box(text)
        return Score(box is not None and iou(box, tuple(answer)) >= LEAST_IOU, parsed=box is not None)
    accepted = [answer] if isinstance(answer, str) else answer
    return Score(normalise(text) in map(normalise, accepted))


def check_answers(questions: list[dict]) -> None:
    """Raise ValueError unless there are questions, all or none with a right answer, and each, if any, with a category
    that can head a column of a table; it names the first that is not so."""
    if not questions:
        raise ValueError("question file: expected questions, got none")
    taken = COLUMNS if all("category" in question for question in questions) else (*COLUMNS, NO_CATEGORY)
    has_answers = any("answer" in question for question in questions)
    for row, question in enumerate(questions):
        name = f"question file, row {row}, question {question['question_id']!r}"
        if has_answers and "answer" not in question:
            raise ValueError(f"{name}: expected a key 'answer' to compare with, got none")
        if has_answers:
            _check_answer(question["answer"], name)
        if "category" in question:
            _check_category(question["category"], taken, name)


def _check_answer(answer, name: str) -> None:
    words = [answer] if isinstance(answer, str) else answer
    some_words = isinstance(words, list) and len(words) > 0 and all(isinstance(word, str) for word in words)
    if not some_words and not is_box(answer):
        raise ValueError(
            f"{name}: expected answer to be a string, some strings or a box [x1, y1, x2, y2], got {answer!r}"
        )
    if some_words and not all(map(normalise, words)):
        raise ValueError(f"{name}: expected an answer that is not empty, got {answer!r}")
    if not some_words and not iou(tuple(answer), tuple(answer)):
        raise ValueError(f"{name}: expected a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2, got {answer!r}")


def _check_category(category, taken: tuple[str, ...], name: str) -> None:
    if not isinstance(category, str):
        raise ValueError(f"{name}: expected category to be a string, got {category!r}")
    if not category.strip() or not category.isprintable():
        raise ValueError(f"{name}: expected category to be one printable line, got {category!r}")
    if category.strip() in taken:
        raise ValueError(f"{name}: expected a category that is no other column of the table, got {category!r}")
