"""VQA accuracy where the answers of several people are known: what VQAv2, VizWiz and TextVQA share.

read_people   entries of a published file -> what each person said
score_soft    questions with these, and answers -> accuracy, and of each type of question
"""

from pathlib import Path

from .benchmark import Scores
from .gold import check_entries, check_types, check_words, percent, percent_by
from .normalise import normalise_evalai, soft_accuracy

METRIC = "VQA accuracy (%), all words normalised"


def read_people(entries: list[dict], file: str | Path) -> list[dict]:
    """The entries, each with `answers` as strings instead of objects, and its answer_type, "any" where it has none.

    Raises:
        ValueError: for answers or types of another format, naming the entry.
    """
    check_types(entries, "answer_type", lambda value: isinstance(value, str), "a string", file)
    read = []
    for number, entry in enumerate(entries):
        people = check_entries(entry["answers"], {"answer": str}, f"{file}, entry {number}, answers")
        words = [person["answer"] for person in people]
        read.append({**entry, "answers": words, "answer_type": entry.get("answer_type", "any")})
    check_words(read, file)
    return read


def num_empty(joined: list) -> int:
    """Answers of which no word is left."""
    return sum(answer is not None and not normalise_evalai(answer["text"]) for answer in joined)


def score_soft(questions: list[dict], joined: list, note: str, parts: dict | None = None) -> Scores:
    """VQA accuracy in percent.

    Args:
        questions: from `read_people`.
        joined: for each its answer or None, as `join` gives them.
        note: on what that is.
        parts: numbers beside those of each type of question.
    """
    values = [
        0.0 if answer is None else soft_accuracy(answer["text"], question["answers"])
        for question, answer in zip(questions, joined, strict=True)
    ]
    kinds = percent_by((question["answer_type"], value) for question, value in zip(questions, values, strict=True))
    return Scores(
        value=percent(values),
        metric=METRIC,
        num_questions=len(questions),
        num_missing=joined.count(None),
        num_unparsed=num_empty(joined),
        parts={**kinds, **(parts or {})},
        notes=(note,),
    )
