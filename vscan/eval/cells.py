"""The cells of a comparison: every reduction answers the same questions, each into an answers file of its own.

Nothing here knows a model: who calls `evaluate` brings a function that answers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Budget, ReductionConfig
from .records import AnswersFile
from .run_record import versions
from .scoring import check_answers, score


@dataclass(frozen=True)
class Cell:
    """One row of a comparison.

    Args:
        label: what it is called; cells of one label are one line in the picture.
        reduction: what is reduced; None is the dense model.
        tokens: visual tokens of an image, averaged over the decoder's layers, as a count or a share; None says that
            there is no such number, and leaves the cell out of the picture.
        least: where the method cannot have so few on average, how many it can; there is nothing to answer then.
    """

    label: str
    reduction: ReductionConfig | None = None
    tokens: Budget | None = None
    least: Budget | None = None

    @property
    def name(self) -> str:
        """Label and tokens: unique in a comparison."""
        return self.label if self.tokens is None else f"{self.label} {self.tokens:g}"

    @property
    def file_name(self) -> str:
        """Of its answers."""
        return re.sub(r"[^\w.-]+", "-", self.name) + ".jsonl"


@dataclass(frozen=True, eq=False)
class Row:
    """What a cell did.

    Args:
        cell: which one.
        answers: what it said to each question; of a cell that cannot be, none.
        correct: bool [number of answers]; without right answers, whether it said what the dense model said.
        num_unparsable: answers that hold no box where one was asked for.
        stages: (layer, visual tokens from that layer on), the mean over the questions that have an image.
        seconds: spent in answering, summed over the questions; encoding that another cell had done already is in it.
    """

    cell: Cell
    answers: list[str]
    correct: np.ndarray
    num_unparsable: int
    stages: list[tuple[int, float]]
    seconds: float


def evaluate(
    cells: Sequence[Cell],
    questions: list[dict],
    output: str | Path,
    record: dict,
    answer: Callable[[Cell, list[int], AnswersFile], None],
) -> list[Row]:
    """Answer the questions in every cell, and score the answers. What `output` holds of them already is not done again.

    Args:
        cells: in the order of the table.
        questions: as in a question file, each with its `answer`; where none has one, the dense cell's answers count as
            right.
        output: folder for the answers files, a cell each, with their records beside them.
        record: plain values, whatever decides the answers beside cell and questions: the model, how it generates.
        answer: writes the answers of a cell to the given row numbers into the given file; called once for each cell
            that lacks some.

    Raises:
        ValueError: for some questions without answers, or all of them and no dense cell; for two cells of one name, or
            a folder that was begun with other questions or another record, before anything is answered; and whatever
            `answer` raises.
    """
    check_answers(questions)
    dense = next((cell for cell in cells if cell.reduction is None), None)
    if dense is None and "answer" not in questions[0]:
        raise ValueError("questions: expected right answers where no cell is the dense model, got none")
    names = [cell.file_name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cells: expected different names, got more than one that writes to {', '.join(twice)}")
    digest = hashlib.sha256(json.dumps(questions, sort_keys=True).encode()).hexdigest()
    record = {"versions": versions(), **record, "questions": {"number": len(questions), "sha256": digest}}
    with ExitStack() as stack:
        # All files are opened, and so checked, before the first question is answered.
        files = {}
        for cell in cells:
            if cell.least is None:
                config = {**record, "reduction": cell.reduction and cell.reduction.to_dict()}
                files[cell.name] = AnswersFile(Path(output) / cell.file_name, config)
                stack.callback(files[cell.name].close)
        left = {name: file.todo(questions) for name, file in files.items()}
        for cell in cells:
            if left.get(cell.name):
                answer(cell, left[cell.name], files[cell.name])
                files[cell.name].merge()
        if "answer" not in questions[0]:
            questions = _answered_by(files[dense.name], questions)
        return [_scored(cell, questions, files.get(cell.name)) for cell in cells]


def _answered_by(file: AnswersFile, questions: list[dict]) -> list[dict]:
    """Questions whose right answers are those in a file."""
    texts = [json.loads(answer)["text"] for _, answer, _ in file.rows()]
    return [{**question, "answer": [text]} for question, text in zip(questions, texts, strict=True)]


def _scored(cell: Cell, questions: list[dict], file: AnswersFile | None) -> Row:
    """Read a cell's answers and their stats; None is a cell that cannot be."""
    if file is None:
        return Row(cell, [], np.array([], dtype=bool), 0, [], 0.0)
    lines = [(json.loads(answer), json.loads(stats)) for _, answer, stats in file.rows()]
    texts = [answer["text"] for answer, _ in lines]
    scores = [score(text, question["answer"]) for text, question in zip(texts, questions, strict=True)]
    with_image = [stats["stages"] for _, stats in lines if stats.get("visual_tokens")]
    stages = [(stage[0][0], float(np.mean([tokens for _, tokens in stage]))) for stage in zip(*with_image, strict=True)]
    return Row(
        cell=cell,
        answers=texts,
        correct=np.array([each.correct for each in scores]),
        num_unparsable=sum(not each.parsed for each in scores),
        stages=stages,
        seconds=sum(stats.get("seconds", 0.0) + stats.get("shared_seconds", 0.0) for _, stats in lines),
    )
