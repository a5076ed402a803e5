"""The picture of a comparison: accuracy against visual tokens."""

from collections.abc import Sequence
from pathlib import Path

from .table import Summary

# Okabe and Ito's palette, which all kinds of colour vision tell apart; the dense model has the grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
GREY = "#666666"
DODGE = 0.012  # of the axis, between neighbouring lines: error bars at one budget would hide each other


def plot(summaries: Sequence[Summary], file: str | Path) -> None:
    """Draw mean accuracy against average tokens, a line a label; the dense model is a dashed line.

    Error bars are as long as the 95 % interval of the paired difference to the dense model, not that of the accuracy
    itself, which is wider. Where a bar does not reach the dashed line, the difference is more than chance: both weigh
    categories alike.

    Args:
        summaries: those without tokens, beside the dense one, are left out, and those that cannot be.
        file: PNG to write.
    """
    from matplotlib.figure import Figure  # tables are made without it

    lines: dict[str, list[Summary]] = {}
    for summary in summaries:
        cell = summary.cell
        if cell.reduction is not None and cell.tokens is not None and cell.least is None:
            lines.setdefault(cell.label, []).append(summary)
    dense = next((summary for summary in summaries if summary.cell.reduction is None), None)
    budgets = sorted({summary.cell.tokens for line in lines.values() for summary in line})

    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    span = max(budgets[-1] - budgets[0], 1) if budgets else 1
    for number, (label, line) in enumerate(lines.items()):
        line = sorted(line, key=lambda summary: summary.cell.tokens)
        shift = (number - (len(lines) - 1) / 2) * DODGE * span
        axes.errorbar(
            [summary.cell.tokens + shift for summary in line],
            [summary.mean for summary in line],
            yerr=None if dense is None else [summary.half_width for summary in line],
            label=label,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            linewidth=1.6,
            elinewidth=0.9,
            markersize=5,
        )
    if dense is not None:
        axes.axhline(dense.mean, color=GREY, linestyle="--", label="dense")
    axes.set_xticks(budgets, [f"{tokens:g}" for tokens in budgets])
    axes.set_xlabel("visual tokens per image, average over the decoder's layers")
    axes.set_ylabel("accuracy, mean over categories (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if dense is not None:
        note = "bars: 95 % interval of the paired difference to dense"
        axes.set_title(note, fontsize=9, color=GREY)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file)
