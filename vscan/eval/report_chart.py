"""The picture of a report: what is retained of the dense model against visual tokens, a panel a family."""

from pathlib import Path

from matplotlib.figure import Figure

from .chart import COLOURS, GREY, MARKERS
from .columns import beside, columns_of, mean_retained
from .runs import Run, comparable, cost


def plot(runs: list[Run], file: str | Path) -> None:
    """Draw our runs as lines, and published ones of the same methods as dotted lines with open markers.

    Args:
        runs: from `read_runs`; those whose tokens or dense run are not known are left out.
        file: PNG to write.
    """
    families = list(dict.fromkeys(run.family for run in runs))
    figure = Figure(figsize=(7.5, 0.6 + 3.9 * len(families)), dpi=150, layout="constrained")
    panels = figure.subplots(len(families), squeeze=False)[:, 0]
    for axes, family in zip(panels, families, strict=True):
        own = [run for run in runs if run.family == family]
        columns = columns_of(own)
        published = beside(runs, family, columns)
        lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for group, all_runs in ((own, runs), (published, published)):
            for run in group:
                mean, _ = mean_retained(run, all_runs, columns)
                tokens = cost(run, comparable(run, all_runs)).tokens
                if mean is not None and tokens is not None and run.method != "dense":
                    lines.setdefault((run.method, run.source), []).append((tokens, mean))
        styles = {method: number for number, method in enumerate(dict.fromkeys(method for method, _ in lines))}
        for (method, source), points in lines.items():
            number = styles[method]
            axes.plot(
                *zip(*sorted(points), strict=True),
                label=f"{method}, {source or 'here'}",
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=":" if source else "-",
                fillstyle="none" if source else "full",
            )
        axes.axhline(100, color=GREY, linestyle="--", label="dense")
        axes.set_title(family, fontsize=10)
        axes.set_xlabel("visual tokens per image, average over the decoder's layers")
        axes.set_ylabel("retained of dense (%), mean of benchmarks")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(file)
