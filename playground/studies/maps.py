"""The pictures of the attention study: its measures by layer, and maps beside the pictures."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vscan.eval.chart import COLOURS, GREY, MARKERS
from vscan.models.towers import grid_of

from ..scenes.world import GRID
from .charts import new_figure, shade, tidy
from .dense import Parts, vision_layers
from .layers import Means

if TYPE_CHECKING:
    from .attention import Example

SHARPEST = 99.5  # percentile of a map that gets the brightest colour: one patch may outshine all others


def plot_measures(tower: dict[str, Means], decoder: dict[str, Means], spread: Means, file: Path) -> None:
    """Everything against the layer: the tower above, the decoder below; panels without data are left out.

    Args:
        tower, decoder: [layers].
        spread: percent of the attention on each row of the grid, [layers, height].
        file: PNG to write.
    """
    from .attention import ASKED, ASKED_SHARE, CLS_ON_THINGS, DISTANCE, KEPT_LOWER, LOWER, MASS, THINGS, UPPER

    figure = new_figure(15, 8)
    panels = figure.subplots(2, 3)
    block, layer = "vision block", "decoder layer"
    if CLS_ON_THINGS in tower:
        _lines(panels[0, 0], {"attention of [CLS]": tower[CLS_ON_THINGS], "patches": tower[THINGS]})
        tidy(panels[0, 0], block, "share of things (%)")
        areas = {name.removeprefix("AUC "): values for name, values in tower.items() if name.startswith("AUC")}
        _lines(panels[0, 1], areas, level=0.5)
        panels[0, 1].set_ylim(0, 1.03)
        tidy(panels[0, 1], block, "AUC of [CLS] attention, things against ground")
    else:
        for axes in panels[0, :2]:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "needs scenes.jsonl", ha="center", color=GREY)
    _lines(panels[0, 2], {"": tower[DISTANCE]})
    panels[0, 2].set_ylim(bottom=0)
    tidy(panels[0, 2], block, "how far patches look (patches, mean)")
    lines = {"visual tokens, of all": decoder[MASS]}
    if ASKED_SHARE in decoder:
        lines |= {"what is asked, of visual": decoder[ASKED_SHARE], "what is asked, of patches": decoder[ASKED]}
    _lines(panels[1, 0], lines)
    panels[1, 0].set_yscale("log")  # a picture gets half of the attention, a thing a hundredth
    panels[1, 0].yaxis.set_major_formatter("{x:g}")
    panels[1, 0].yaxis.set_minor_formatter("{x:g}")
    tidy(panels[1, 0], layer, "attention of the last prompt token (%)")
    thirds = {
        "upper third": decoder[UPPER],
        "lower third": decoder[LOWER],
        "lower third, of best half": decoder[KEPT_LOWER],
    }
    _lines(panels[1, 1], thirds, level=100 / 3)
    panels[1, 1].set_ylim(bottom=0)
    tidy(panels[1, 1], layer, "share of the visual attention (%)")
    _spread(panels[1, 2], spread)
    figure.suptitle("bands: 95 % intervals", fontsize=9, color=GREY)
    for axes in panels.flat:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def _lines(axes, lines: dict[str, Means], level: float | None = None) -> None:
    """Values by layer with their intervals; a level line is what no preference gives."""
    if level is not None:
        axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
    for number, (name, means) in enumerate(lines.items()):
        values = means.values
        if not np.isnan(values).all():
            axes.plot(values, label=name or None, color=COLOURS[number], marker=MARKERS[number], markersize=5)
            shade(axes.fill_between, means, COLOURS[number])
            axes.set_xticks(range(0, len(values), max(1, len(values) // 8)))


def _spread(axes, spread: Means) -> None:
    """Attention over the rows of the grid in an early, a middle and a late layer."""
    num_layers, height = spread.values.shape
    for number, layer in enumerate(early_middle_late(num_layers)):
        means = Means(spread.values[layer], spread.half_widths[layer])
        axes.plot(means.values, np.arange(height), label=f"layer {layer}", color=COLOURS[number], linewidth=1.8)
        shade(axes.fill_betweenx, means, COLOURS[number])
    axes.axvline(100 / height, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_xlim(left=0)
    tidy(axes, "share of the visual attention (%)", "row of the grid, from the top")


def early_middle_late(num_layers: int) -> list[int]:
    """The paper's layers 2 and 16 of 32, and the last one."""
    return sorted({max(num_layers // 16, min(1, num_layers - 1)), num_layers // 2, num_layers - 1})


def _map(axes, look: np.ndarray, grid: tuple[int, int], title: str) -> None:
    most = max(float(np.percentile(look, SHARPEST)), 1e-12)
    axes.imshow(look.reshape(grid), cmap="viridis", vmin=0, vmax=most)
    axes.set_title(title, fontsize=9)


def _grid_of_panels(rows: int, columns: int):
    """Square panels without axes, room for a title over each."""
    figure = new_figure(2.4 * columns, 2.75 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, panels


def plot_tower(examples: list[Example], model, file: Path) -> None:
    """A row a picture: the picture, and the attention of [CLS] in a shallow block, in the global layer and in the last.

    Each map has its own scale.
    """
    local, deep = vision_layers(model)
    last = len(examples[0].looks) - 1
    blocks = {local: "local layer", deep: "global layer"}
    blocks = {0: "first", last: "last", **blocks}
    grid = grid_of(Parts.of(model).tower)
    figure, panels = _grid_of_panels(len(examples), 1 + len(blocks))
    for row, example in zip(panels, examples, strict=True):
        row[0].imshow(example.picture)
        row[0].set_title("picture", fontsize=9)
        for axes, block in zip(row[1:], sorted(blocks), strict=True):
            _map(axes, example.looks[block], grid, f"[CLS], block {block} ({blocks[block]})")
    figure.savefig(file)


def plot_decoder(examples: list[Example], model, file: Path) -> None:
    """A row a question: the picture, and where the last prompt token looks in an early, a middle and a late layer.

    What the question is about is framed; each map has its own scale, and says how much of all attention it holds.
    """
    from matplotlib.patches import Rectangle

    height, width = grid_of(Parts.of(model).tower)
    layers = early_middle_late(len(examples[0].looks))
    figure, panels = _grid_of_panels(len(examples), 1 + len(layers))
    for row, example in zip(panels, examples, strict=True):
        row[0].imshow(example.picture)
        row[0].set_title("\n".join(textwrap.wrap(example.text.split("\n")[0], 32)[:3]), fontsize=8)
        for axes, layer in zip(row[1:], layers, strict=True):
            look = example.looks[layer]
            _map(axes, look, (height, width), f"layer {layer}: {100 * look.sum():.0f} % on the picture")
            for thing in example.about:
                left, upper, right, lower = (
                    edge * side / GRID for edge, side in zip(thing.box, (width, height, width, height), strict=True)
                )
                frame = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 1.4}
                axes.add_patch(Rectangle((left - 0.5, upper - 0.5), right - left, lower - upper, **frame))
    figure.savefig(file)
