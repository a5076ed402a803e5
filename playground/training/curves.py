"""The log as a picture: accuracy against minutes, one panel a stage."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

PANELS = {
    "tower: labels of patches": ("tower_small", "tower"),
    "decoder on label embeddings, 16 x 16": ("decoder",),
    "projector and decoder on the tower's features": ("projector", "joint"),
    "projector and grown decoder": ("deep",),
}


def plot_curves(log: Path, file: Path) -> None:
    """Draw the stages' logs, one file; dashed lines are at shifted positions, dotted ones on windows of 12 x 12."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure: Figure
    there = {row["stage"] for row in rows}
    panels = {title: stages for title, stages in PANELS.items() if there.intersection(stages)}
    figure, axes = plt.subplots(1, len(panels), figsize=(16 / 3 * len(panels), 4.5), sharey=True, squeeze=False)
    for axis, (title, stages) in zip(axes[0], panels.items(), strict=True):
        start, curves = 0.0, {}
        for stage in stages:
            of_stage = [row for row in rows if row["stage"] == stage]
            for row in of_stage:
                for name, value in row.items():
                    if name not in ("stage", "step", "pictures", "minutes", "loss"):
                        curves.setdefault(name, []).append((start + row["minutes"], value))
            start += of_stage[-1]["minutes"] if of_stage else 0
        colours = {}
        for name, points in curves.items():
            kind = name.rstrip("~0123456789")
            label = None if kind in colours else kind
            colour = colours.setdefault(kind, f"C{len(colours)}")
            style = "--" if name.endswith("~") else ":" if name.endswith("12") else "-"
            axis.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.5)
        axis.set(title=title, xlabel="minutes", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        if curves:
            axis.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel("accuracy on validation scenes")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
