"""Means by layer with their 95 % intervals, and the tables of them: what `attention` and `lens` come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vscan.eval.table import paired_interval

from .tables import ends, markdown, shown, write_csv

NOTE = "Intervals: 95 %, robust to several questions about one image."


@dataclass(frozen=True)
class Means:
    """Means over pictures or questions, such as one for every layer.

    Args:
        values: [...], in the unit of what was measured; nan where nothing has a number.
        half_widths: of their 95 % intervals, alike; nan where all numbers are about one image.
    """

    values: np.ndarray
    half_widths: np.ndarray


def means_of(values: np.ndarray, clusters: Sequence) -> Means:
    """The mean over pictures or questions, each with the interval of `vscan.eval.table`.

    Args:
        values: [n, ...]; nan for what has no number, and is left out.
        clusters: n values; questions of one value are one cluster.
    """
    columns = values.reshape(len(values), -1).T
    pairs = np.full((2, len(columns)), np.nan)
    for index, column in enumerate(columns):
        known = ~np.isnan(column)
        if known.any():
            of_known = [cluster for cluster, has_number in zip(clusters, known, strict=True) if has_number]
            pairs[:, index] = paired_interval(column[known], np.zeros(known.sum()), of_known)
    return Means(*pairs.reshape(2, *values.shape[1:]))


def write_tables(parts: dict[str, dict[str, Means]], note: str, folder: Path) -> str:
    """Write table.md, a table for each part, and table.csv, one for all; returns the former.

    Args:
        parts: {part: {measure: [layers]}}; the part's name heads the layers in table.md, and stands in a column of
            table.csv where there is more than one.
        note: what the numbers are, below the tables; what the intervals are is added.
    """
    names = list(dict.fromkeys(name for measures in parts.values() for name in measures))
    texts, lines = [], []
    for part, measures in parts.items():
        cells = []
        for layer in range(len(next(iter(measures.values())).values)):
            row = {name: (float(of.values[layer]), float(of.half_widths[layer])) for name, of in measures.items()}
            # An area under a curve is at most 1, all else is percent or patches.
            texts_of = [shown(v, 2 if name.startswith("AUC") else 1) for name, pair in row.items() for v in pair]
            cells.append([str(layer), *texts_of])
            columns = [value for name in names for value in ends(*row.get(name, (None, None)))]
            lines.append([part] * (len(parts) > 1) + [layer, *columns])
        texts.append(markdown([part, *(text for name in measures for text in (name, "+-"))], cells))
    text = "\n".join([*texts, note + NOTE + "\n"])
    (folder / "table.md").write_text(text)
    header = ["part"] * (len(parts) > 1) + ["layer"]
    header += [text for name in names for text in (name, f"{name} low", f"{name} high")]
    write_csv(folder / "table.csv", header, lines)
    return text
