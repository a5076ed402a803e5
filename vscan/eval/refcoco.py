"""RefCOCO, RefCOCO+ and RefCOCOg in VLM-R1's format: which box does an expression name? Imports no torch.

read_split      a split's file -> questions
judge           an answer -> a box in the picture's own pixels, and whether it is right
summarise       judged rows -> Acc@0.5
"""

import math
import os
import re
from pathlib import Path

from .gold import read_json
from .scoring import BOX, LEAST_IOU, Box, iou, is_box

SPLITS = (
    "refcoco_val",
    "refcoco_testA",
    "refcoco_testB",
    "refcocop_val",
    "refcocop_testA",
    "refcocop_testB",
    "refcocog_val",
    "refcocog_test",
)
PROMPT = "Locate {} in this image and output the bbox coordinates in JSON format."
ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)
WHOLE_BOX = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")  # all that the published code reads


def read_split(folder: str | Path, name: str) -> list[dict]:
    """Read `<name>.json`: a list of {image, normal_caption, solution [x1, y1, x2, y2] in pixels, width, height}.

    Returns:
        Questions: question_id (the place in the file), image, text, solution, width and height.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no such list, naming the entry.
    """
    file = Path(folder) / f"{name}.json"
    if not os.path.isfile(file):
        raise FileNotFoundError(f"data root: expected the split {name}, found none at {str(file)!r}")
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: expected a JSON list with entries, got {str(entries)[:60]!r}")
    return [_question(entry, number, f"{file}, entry {number}") for number, entry in enumerate(entries)]


def _question(entry, number: int, where: str) -> dict:
    """An entry as a question; the reference drops one leading article of the caption."""
    keys = ("image", "normal_caption", "solution", "width", "height")
    missing = set(keys) - set(entry if isinstance(entry, dict) else ())
    if missing:
        raise ValueError(f"{where}: expected the keys {sorted(missing)}, got {str(entry)[:60]!r}")
    image, caption, solution, width, height = (entry[key] for key in keys)
    for key in ("image", "normal_caption"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise ValueError(f"{where}: expected {key} to be a string, got {entry[key]!r}")
    if not is_box(solution) or not iou(tuple(solution), tuple(solution)):
        raise ValueError(f"{where}: expected solution to be a box [x1, y1, x2, y2], x1 < x2, y1 < y2, got {solution!r}")
    for key in ("width", "height"):
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float) or not entry[key] > 0:
            raise ValueError(f"{where}: expected {key} to be a number above 0, got {entry[key]!r}")
    text = PROMPT.format(ARTICLE.sub("", caption))
    return {
        "question_id": number,
        "image": image,
        "text": text,
        "solution": solution,
        "width": width,
        "height": height,
    }


def boxes(text: str, pattern: re.Pattern = BOX) -> list[Box]:
    """All boxes x1, y1, x2, y2 in a text, in order; integers or decimals, in JSON, in code fences or bare."""
    found = [tuple(map(float, match.groups())) for match in pattern.finditer(text)]
    return [box for box in found if all(map(math.isfinite, box))]  # a number of 400 digits is infinite


def rescale(box: Box, resized: tuple[int, int], size: tuple[float, float]) -> Box:
    """A box in the pixels of the resized picture -> in those of the picture itself; sizes are (width, height)."""
    scales = (size[0] / resized[0], size[1] / resized[1]) * 2
    return tuple(value * scale for value, scale in zip(box, scales, strict=True))


def published_iou(one: Box, other: Box) -> float:
    """Intersection over union as the published code has it: an overlap of at most one pixel counts as none, and so
    does any of boxes in [0, 1]; boxes that cover nothing overlap nothing (there: a division by zero)."""
    x1, y1 = max(one[0], other[0]), max(one[1], other[1])
    x2, y2 = min(one[2], other[2]) - 1, min(one[3], other[3]) - 1
    both = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - both
    return both / union if union else 0.0


def judge(question: dict, text: str, resized: tuple[int, int]) -> dict:
    """Compare an answer with a question's box.

    Args:
        question: from `read_split`.
        text: what the model said; its boxes are in the pixels of the resized picture.
        resized: (width, height) of that.

    Returns:
        A row of results: `extracted_answer` is the first box in the picture's own pixels, None for none; `correct`
        says whether its IoU is at least 0.5; `published_correct`, whether any box of whole numbers has more than 0.5.
    """
    gold, size = tuple(question["solution"]), (question["width"], question["height"])
    first = next((rescale(box, resized, size) for box in boxes(text)), None)
    overlap = 0.0 if first is None else iou(first, gold)
    return {
        "row": question["question_id"],
        "image": question["image"],
        "question": question["text"],
        "ground_truth": question["solution"],
        "model_output": text,
        "extracted_answer": None if first is None else list(first),
        "iou": overlap,
        "correct": overlap >= LEAST_IOU,
        "published_correct": any(
            published_iou(rescale(box, resized, size), gold) > LEAST_IOU for box in boxes(text, WHOLE_BOX)
        ),
    }


def summarise(rows: list[dict], num_questions: int) -> dict:
    """Acc@0.5 of some judged rows, in percent of all questions: one without an answer is wrong, and counted.

    Returns:
        questions, missing, unparsable, correct, published_correct, accuracy and published_accuracy.
    """
    counts = {name: sum(row[name] for row in rows) for name in ("correct", "published_correct")}
    return {
        "questions": num_questions,
        "missing": num_questions - len(rows),
        "unparsable": sum(row["extracted_answer"] is None for row in rows),
        **counts,
        "accuracy": 100 * counts["correct"] / num_questions,
        "published_accuracy": 100 * counts["published_correct"] / num_questions,
    }
