"""RefCOCO, RefCOCO+ and RefCOCOg: scores out of what `qwen.eval.test_refcoco` wrote, for all splits or for one.

The rules are those of `refcoco.py`. Two countings are reported: the first box with an IoU of at least 0.5 is the value;
the published code's, any box of whole numbers with more than 0.5, lies in the parts.
"""

import json
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, asked, join, read_rows
from .gold import read_answers
from .questions import check_images
from .refcoco import SPLITS, boxes, judge, read_split, summarise

PLACES = ("", "rec_jsons_processed/")
NUM_ROWS = dict(zip(SPLITS, (10834, 5657, 5095, 10758, 5726, 4889, 4896, 9602), strict=True))
FILES = {
    name: DataFile(tuple(f"{place}{name}.json" for place in PLACES), NUM_ROWS[name], "answers", required=False)
    for name in SPLITS
}
# The splits name "train2014/COCO_train2014_....jpg".
IMAGES = DataFile(("images", "coco", "."), purpose="images")


def _is_relative(box) -> bool:
    return all(0 <= value <= 1 for value in box)


def read_questions(folder: str | Path, name: str) -> list[dict]:
    """A split's questions, from the benchmark's folder.

    Raises:
        FileNotFoundError: if its file is not there.
        ValueError: for a file of another format, or one whose boxes are relative to the picture.
    """
    file = FILES[name].find(folder)
    questions = read_split(file.parent, name)
    if all(_is_relative(question["solution"]) for question in questions):
        got = questions[0]["solution"]
        raise ValueError(f"{file}: expected solution in pixels, got numbers from 0 to 1, such as {got}")
    return questions


def _sized_answers(file: Path) -> list[dict]:
    """The answers of a split, each with the size that its picture was resized to, from the stats beside.

    Raises:
        FileNotFoundError: if either file is missing.
        ValueError: for an answer whose size is not known: where its boxes lie cannot be told.
    """
    answers = read_answers(file, with_prompt=True)
    stats_file = file.with_name(f"{file.name}.stats.jsonl")
    stats = read_rows(stats_file)
    if len(stats) < len(answers):  # more are what a stopped run leaves: stats are written first
        raise ValueError(f"{stats_file}: expected a row for each of the {len(answers)} answers, got {len(stats)}")
    sized = []
    for number, (answer, row) in enumerate(zip(answers, stats, strict=False), start=1):
        size = row.get("resized")
        if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            expected = "resized, the width and height of the resized picture"
            raise ValueError(f"{stats_file}, row {number}: expected {expected}, got {json.dumps(row)[:80]}")
        sized.append({**answer, "resized": tuple(size)})
    return sized


def judge_split(file: Path, questions: list[dict]) -> tuple[dict, list[dict]]:
    """Judge the answers to one split.

    Returns:
        What `summarise` says, and the judged rows.

    Raises:
        FileNotFoundError: if the answers or their stats are missing.
        ValueError: for answers that are not to these questions, or given twice, or of which no size is known.
    """
    joined = join(questions, _sized_answers(file), file, asked)
    rows = [
        judge(question, answer["text"], answer["resized"])
        for question, answer in zip(questions, joined, strict=True)
        if answer is not None
    ]
    return summarise(rows, len(questions)), rows


def answers_of(answers: str | Path) -> dict[str, Path]:
    """The answers files by split.

    Args:
        answers: the command's output folder, or one split's answers in it, such as refcoco_val.jsonl.

    Raises:
        FileNotFoundError: if there are none.
    """
    path = Path(answers)
    names = {f"{name}.jsonl": name for name in SPLITS}
    files = [path] if path.is_file() else [path / name for name in names]
    found = {names[file.name]: file for file in files if file.is_file() and file.name in names}
    if not found:
        expected = f"one of {', '.join(names)}, or a folder with them"
        raise FileNotFoundError(f"answers: expected {expected}, got {str(path)!r}")
    return found


def score(answers_file: str | Path, folder: str | Path) -> Scores:
    """Acc@0.5 over all splits that were answered, and of each.

    Args:
        answers_file: the output folder of `qwen.eval.test_refcoco`, or one split's answers in it.
        folder: with the splits' files.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to these questions, or given twice, or of which no size is known.
    """
    files = answers_of(answers_file)
    questions = {name: read_questions(folder, name) for name in files}
    judged = {name: judge_split(file, questions[name]) for name, file in files.items()}
    rows = [row for _, split in judged.values() for row in split]
    total = summarise(rows, sum(map(len, questions.values())))
    relative = sum(any(map(_is_relative, boxes(row["model_output"])[:1])) for row in rows)
    notes = [f"{relative} answers give a box of numbers from 0 to 1, while pixels were asked for."] if relative else []
    absent = [name for name in SPLITS if name not in files]
    if absent:
        notes.append(f"Without {', '.join(absent)}: not answered.")
    return Scores(
        value=total["accuracy"],
        metric="Acc@0.5 (%), first box, IoU >= 0.5",
        num_questions=total["questions"],
        num_missing=total["missing"],
        num_unparsed=total["unparsable"],
        parts={
            **{name: summary["accuracy"] for name, (summary, _) in judged.items()},
            "published counting (any box of whole numbers, IoU > 0.5)": {
                **{name: summary["published_accuracy"] for name, (summary, _) in judged.items()},
                "all": total["published_accuracy"],
            },
        },
        notes=tuple(notes),
    )


def check(folder: str | Path) -> list[str]:
    """Whether there is a split at all, and the pictures of those that are there."""
    present = [name for name in SPLITS if any((Path(folder) / path).is_file() for path in FILES[name].paths)]
    if not present:
        return [f"expected at least one split, such as {SPLITS[0]}.json, found none"]
    try:
        check_images([row for name in present for row in read_questions(folder, name)], IMAGES.find(folder))
    except FileNotFoundError as error:
        return [str(error)]
    return []


BENCHMARK = Benchmark("refcoco", "RefCOCO", "refcoco", (*FILES.values(), IMAGES), score, check)
