"""Pictures of sweeps and of what changes from layer to layer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vscan.eval.chart import COLOURS, GREY, MARKERS

from .layers import Means
from .results import Point
from .sweeps import DENSE, Sweep

LEADING = ("black", COLOURS[1])  # of series; one that is paired has the colour of its partner
FAINT = {"alpha": 0.45, "linewidth": 0.9, "markersize": 3.5}


def new_figure(width: float, height: float):
    from matplotlib.figure import Figure  # the command's errors come without it

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def tidy(axes, x: str, y: str) -> None:
    """Labels, a light grid, no frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def shade(fill: Callable, means: Means, colour: str, opacity: float = 0.15) -> None:
    """The 95 % intervals of a line as a band; none where they are not known.

    Args:
        fill: `fill_between` of the axes, or `fill_betweenx` where the values lie on the x axis.
        means: [points of the line].
    """
    low, high = (means.values + sign * means.half_widths for sign in (-1, 1))
    fill(np.arange(len(low)), low, high, color=colour, alpha=opacity, linewidth=0)


def _kinds(axes, line: Sequence[tuple[float, dict[str, float]]]) -> None:
    """A faint line for each kind of question, from (value, {kind: points})."""
    for number, kind in enumerate(line[0][1]):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], **FAINT}
        axes.plot([value for value, _ in line], [of_kind[kind] for _, of_kind in line], label=kind, **style)


def _means(axes, points: Sequence[Point], sweep: Sweep) -> None:
    """Mean accuracy of every series with its interval, and the references as level lines."""
    partners = {other: name for name, other in sweep.pairs.items()}
    leading = [name for name in sweep.series if name not in partners]
    for number, name in enumerate(sweep.series):
        line = [point for point in points if point.series == name and point.value is not None]
        first = partners.get(name, name)
        axes.errorbar(
            [point.value for point in line],
            [point.summary.mean for point in line],
            yerr=[point.half_width for point in line],
            label=name,
            marker=MARKERS[number],
            color=LEADING[leading.index(first)],
            linestyle="-" if name == first else "--",
            capsize=3,
            linewidth=2,
            elinewidth=1,
            zorder=3,
        )
    for point in points:
        if point.value is None:
            is_dense = point.series == DENSE
            style = {"color": GREY, "linestyle": "--"} if is_dense else {"color": COLOURS[1], "linestyle": ":"}
            axes.axhline(point.summary.mean, label=point.series, linewidth=1.6, **style)
            if not is_dense:
                ends = (point.summary.mean + sign * point.half_width for sign in (-1, 1))
                axes.axhspan(*ends, color=COLOURS[1], alpha=0.08, linewidth=0)


def _differences(axes, points: Sequence[Point], sweep: Sweep) -> None:
    """The paired differences with their intervals; by kind of question for the first pair."""
    axes.axhline(0, color=GREY, linewidth=1)
    for number, (name, other) in enumerate(sweep.pairs.items()):
        line = [point for point in points if point.series == name]
        if number == 0:
            _kinds(axes, [(point.value, point.paired_by_kind) for point in line])
        axes.errorbar(
            [point.value for point in line],
            [point.paired[0] for point in line],
            yerr=[point.paired[1] for point in line],
            label=f"{name} minus {other}",
            color=LEADING[number],
            marker=MARKERS[number],
            capsize=3,
            linewidth=2,
            zorder=3,
        )
    tidy(axes, sweep.axis, "paired difference in accuracy (points)")


def plot_sweep(points: Sequence[Point], sweep: Sweep, file: Path) -> None:
    """Accuracy against what is swept. Where series are paired a second panel has their differences.

    Args:
        points: of the sweep.
        file: PNG to write.
    """
    figure = new_figure(12.5, 5.4) if sweep.pairs else new_figure(8.2, 4.8)
    panels = figure.subplots(1, 2 if sweep.pairs else 1, squeeze=False)[0]
    _means(panels[0], points, sweep)
    first = next(iter(sweep.series))
    line = [point for point in points if point.series == first and point.value is not None]
    if sweep.pairs:
        _differences(panels[1], points, sweep)
        note = f"bars: 95 % intervals; thin lines: {next(iter(sweep.pairs))}, by kind of question"
        panels[1].set_title(note, fontsize=9, color=GREY)
    else:
        _kinds(panels[0], [(point.value, point.summary.accuracy) for point in line])
    note = "bars: 95 % intervals" + ("" if sweep.pairs else f"; thin lines: {first}, by kind of question")
    panels[0].set_title(note, fontsize=9, color=GREY)
    tidy(panels[0], sweep.axis, "accuracy, mean over kinds (%)")
    for axes in panels:
        values = sorted({point.value for point in line})
        axes.set_xticks(values, [f"{value:g}" for value in values])
        if sweep.pairs:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, fontsize=8)
    if not sweep.pairs:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(file)
