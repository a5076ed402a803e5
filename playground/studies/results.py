"""What a sweep came to: accuracies, differences to the dense model, and differences between paired series."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vscan.eval.cells import Row
from vscan.eval.table import NO_CATEGORY, Summary, paired_interval, summarise

from .layers import NOTE
from .sweeps import Sweep
from .tables import ends, markdown, shown, with_interval, write_csv


@dataclass(frozen=True)
class Point:
    """A cell's place in the sweep, and its numbers in points.

    Args:
        series: name of the series or of the reference.
        value: of what is swept; None for a reference.
        summary: accuracies, difference to dense.
        half_width: of the 95 % interval of `summary.mean`; nan where the questions are about one image.
        paired: difference to the paired series at this value and its half width; None for a series without one.
        paired_by_kind: {category: that difference}.
    """

    series: str
    value: float | None
    summary: Summary
    half_width: float
    paired: tuple[float, float] | None
    paired_by_kind: dict[str, float]


def mean_half_width(correct: np.ndarray, kinds: np.ndarray, clusters: Sequence) -> float:
    """Half the 95 % interval of the mean over kinds of their accuracies, robust to clusters.

    The mean is a sum of weighted questions, n / (K n_kind) each. How many there are of each kind is no chance, so
    what varies is a question's correctness about the accuracy of its kind.

    Args:
        correct: bool [n].
        kinds: [n].
        clusters: n values.
    """
    varies = correct.astype(float)
    names, number = np.unique(kinds, return_inverse=True)
    for index in range(len(names)):
        chosen = number == index
        varies[chosen] -= varies[chosen].mean()
        varies[chosen] *= len(correct) / (len(names) * chosen.sum())
    return paired_interval(varies, np.zeros_like(varies), clusters)[1]


def measure(sweep: Sweep, rows: Sequence[Row], questions: list[dict]) -> list[Point]:
    """From rows, in the order of `sweep.cells`, to points."""
    kinds = np.array([question.get("category", NO_CATEGORY) for question in questions])
    clusters = [question.get("image") or row for row, question in enumerate(questions)]
    of_cell = {row.cell.name: row for row in rows}
    places = [(name, None, cell) for name, cell in sweep.references.items()]
    places += [(name, value, cell) for name, line in sweep.series.items() for value, cell in line]
    points = []
    for (name, value, cell), summary in zip(places, summarise(rows, questions), strict=True):
        correct, paired, by_kind = of_cell[cell.name].correct, None, {}
        if name in sweep.pairs:
            partner = dict(sweep.series[sweep.pairs[name]])[value]
            other = of_cell[partner.name].correct
            difference, half_width = paired_interval(correct, other, clusters, kinds)
            paired = 100 * difference, 100 * half_width
            change = correct.astype(float) - other
            by_kind = {kind: 100 * float(change[kinds == kind].mean()) for kind in summary.accuracy}
        half_width = 100 * mean_half_width(correct, kinds, clusters)
        points.append(Point(name, value, summary, half_width, paired, by_kind))
    return points


def write_tables(points: Sequence[Point], sweep: Sweep, folder: Path) -> str:
    """Write table.md and table.csv; returns the former."""
    kinds = list(points[0].summary.accuracy)
    pairs = [f"{name} minus {other}" for name, other in sweep.pairs.items()]
    values = [None if point.value is None else f"{point.value:g}" for point in points]
    header = ["", "value", "average tokens", *kinds, "mean", "+-", "difference to dense", "retained %"]
    header += ["paired difference"] * bool(pairs) + ["tokens per layer"]
    lines = []
    for point, value in zip(points, values, strict=True):
        summary = point.summary
        average = "" if summary.cell.tokens is None else f"{summary.cell.tokens:g}"
        line = [point.series, shown(value), average, *map(shown, summary.accuracy.values()), shown(summary.mean)]
        line += [shown(point.half_width), with_interval(summary.difference, summary.half_width)]
        line += [shown(summary.retained)]
        line += [with_interval(*point.paired or (None, None))] * bool(pairs)
        lines.append([*line, summary.stages_text])
    notes = [f"Value: {sweep.axis}. {NOTE}"]
    notes += [f"Paired difference: {'; '.join(pairs)}; question by question."] * bool(pairs)
    text = markdown(header, lines) + "\n" + "\n".join(notes) + "\n"
    (folder / "table.md").write_text(text)

    header = ["series", "value", "average tokens", "questions", *kinds, "mean", "mean low", "mean high"]
    header += ["difference", "low", "high", "retained", "paired", "paired low", "paired high", "tokens per layer"]
    lines = []
    for point in points:
        summary = point.summary
        line = [point.series, point.value, summary.cell.tokens, summary.num_questions, *summary.accuracy.values()]
        line += ends(summary.mean, point.half_width) + ends(summary.difference, summary.half_width)
        line += [summary.retained, *ends(*point.paired or (None, None)), summary.stages_text]
        lines.append(line)
    write_csv(folder / "table.csv", header, lines)
    return text
