"""The table of a comparison: accuracies, paired differences to the dense model and their intervals.

Categories count alike, in the mean and in the difference, however many questions each has: of K categories, a question
of one with n_k questions has the weight w_q = 1 / (K n_k). With c_q and r_q in {0, 1} for whether a cell and the dense
model answer question q correctly, the mean is sum_q w_q c_q, and the difference D = sum_q w_q d_q, d_q = c_q - r_q.
Questions about one image, or one clip, are not independent, so its standard error is the cluster-robust one: with u_g
the sum of w_q (d_q - D) over the questions of image g, and G images,

    se^2 = G / (G - 1) * sum_g u_g^2,

and the 95 % interval is D +- 1.96 se. A question without an image is a cluster of its own. With one cluster there is no
interval.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cells import Cell, Row
from .scoring import NO_CATEGORY, is_box

QUANTILE = 1.959964  # of the normal distribution, at 0.975
SAME = "The questions have no answers: right is what the dense model says."
WEIGHTS = "Categories count alike, however many questions each has: in the mean, and in its difference to dense."


@dataclass(frozen=True)
class Summary:
    """A row of the table; accuracies and differences in points. A cell that cannot be has none: all are nan or None.

    Args:
        cell: which one.
        num_questions: questions that were answered.
        accuracy: {category: points}, in the order in which the questions name them.
        mean: their mean, in which categories count alike.
        difference: `mean` minus the dense model's; None where there is no dense cell, and for the dense one itself.
        half_width: of the difference's 95 % interval; nan where the questions are about one image.
        retained: `mean` as a percentage of the dense one; None where there is none or it is 0.
        num_unparsable: as in `Row`; None where no question asks for a box.
        stages, seconds: as in `Row`.
    """

    cell: Cell
    num_questions: int
    accuracy: dict[str, float]
    mean: float
    difference: float | None
    half_width: float | None
    retained: float | None
    num_unparsable: int | None
    stages: list[tuple[int, float]]
    seconds: float

    @property
    def stages_text(self) -> str:
        """Such as "0: 96, 4: 32"; of a cell that cannot be, why."""
        if self.cell.least is not None:
            return f"not reachable (at least {self.cell.least:g})"
        return ", ".join(f"{layer}: {round(tokens, 1):g}" for layer, tokens in self.stages)


def paired_interval(
    correct: np.ndarray, reference: np.ndarray, clusters: Sequence, categories: Sequence | None = None
) -> tuple[float, float]:
    """Mean paired difference of two cells, and half the width of its 95 % interval; the formula stands above.

    Args:
        correct, reference: bool [n].
        clusters: n values; questions of one value are one cluster.
        categories: n values; those that differ count alike. None weighs the questions alike.

    Returns:
        Both as shares; the second is nan for one cluster.
    """
    differences = correct.astype(float) - reference.astype(float)
    kinds = _numbers([None] * len(differences) if categories is None else categories)
    sizes = np.bincount(kinds)
    mean = (np.bincount(kinds, weights=differences) / sizes).mean()
    weighted = (differences - mean) / (len(sizes) * sizes[kinds])
    sums = np.bincount(_numbers(clusters), weights=weighted)
    if len(sums) == 1:
        return float(mean), math.nan
    return float(mean), QUANTILE * math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum())


def _numbers(values: Sequence) -> np.ndarray:
    """For each value the number of its kind, counted as the kinds appear: [n] to long [n]."""
    kinds = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([kinds[value] for value in values])


def summarise(rows: Sequence[Row], questions: list[dict]) -> list[Summary]:
    """From rows to the numbers of the table. The first dense row is what others are compared with.

    Args:
        rows: from `evaluate`.
        questions: those that they answered.
    """
    categories = [question.get("category", NO_CATEGORY) for question in questions]
    clusters = [question.get("image") or question.get("video") or row for row, question in enumerate(questions)]
    asks_for_boxes = any(is_box(question.get("answer")) for question in questions)
    dense = next((row for row in rows if row.cell.reduction is None), None)

    def accuracy(row: Row) -> dict[str, float]:
        numbers = _numbers(categories)
        names = dict.fromkeys(categories)
        return {name: 100 * float(row.correct[numbers == number].mean()) for number, name in enumerate(names)}

    summaries = []
    reference = 0.0 if dense is None else float(np.mean(list(accuracy(dense).values())))
    for row in rows:
        if row.cell.least is not None:
            nothing = dict.fromkeys(categories, math.nan)
            num_boxes = 0 if asks_for_boxes else None
            summaries.append(Summary(row.cell, 0, nothing, math.nan, None, None, None, num_boxes, [], math.nan))
            continue
        points = accuracy(row)
        mean = float(np.mean(list(points.values())))
        difference = half_width = None
        if dense is not None and row is not dense:
            paired = paired_interval(row.correct, dense.correct, clusters, categories)
            difference, half_width = (100 * value for value in paired)
        summaries.append(
            Summary(
                cell=row.cell,
                num_questions=len(questions),
                accuracy=points,
                mean=mean,
                difference=difference,
                half_width=half_width,
                retained=100 * mean / reference if reference else None,
                num_unparsable=row.num_unparsable if asks_for_boxes else None,
                stages=row.stages,
                seconds=row.seconds,
            )
        )
    return summaries


def _shown(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


def texts(summaries: Sequence[Summary]) -> list[list[str]]:
    """The table's header and lines, as they are shown."""
    boxes = summaries[0].num_unparsable is not None
    header = ["", *summaries[0].accuracy, "mean", "difference to dense", "retained %", "tokens per layer", "seconds"]
    lines = [header + ["no box"] * boxes]
    for summary in summaries:
        difference = ""
        if summary.difference is not None:
            low, high = (summary.difference + sign * summary.half_width for sign in (-1, 1))
            interval = "" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
            difference = f"{summary.difference:+.1f}{interval}"
        accuracies = [_shown(points) for points in (*summary.accuracy.values(), summary.mean)]
        line = [summary.cell.name, *accuracies, difference, _shown(summary.retained)]
        line += [summary.stages_text, _shown(summary.seconds)]
        lines.append(line + [str(summary.num_unparsable)] * boxes)
    return lines


def markdown(summaries: Sequence[Summary]) -> str:
    """The table as Markdown, in columns of even width; a bar in a name does not end its column."""
    header, *lines = ([text.replace("|", r"\|") for text in line] for line in texts(summaries))
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    left = {0, header.index("tokens per layer")}
    rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "".join(
        "| " + " | ".join(text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in enumerate(pairs)) + " |\n"
        for pairs in (list(zip(line, widths, strict=True)) for line in [header, rule, *lines])
    )


def write_csv(summaries: Sequence[Summary], file: str | Path) -> None:
    """The table with all digits; the interval as its two ends, what is not known as an empty field."""
    names = ["label", "tokens", "questions", *summaries[0].accuracy, "mean", "difference", "low", "high", "retained"]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*names, "tokens per layer", "unparsable", "seconds"])
        for summary in summaries:
            ends = [None, None]
            if summary.difference is not None and not math.isnan(summary.half_width):
                ends = [summary.difference - summary.half_width, summary.difference + summary.half_width]
            cell, seconds = summary.cell, round(summary.seconds, 6)
            line = [cell.label, cell.tokens, summary.num_questions, *summary.accuracy.values(), summary.mean]
            line += [summary.difference, *ends, summary.retained, summary.stages_text, summary.num_unparsable, seconds]
            writer.writerow([None if isinstance(value, float) and math.isnan(value) else value for value in line])
