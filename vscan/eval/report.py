"""The paper's table out of several runs: a score a benchmark, what is retained of the dense model, tokens and seconds
a question, with what papers print beside it; as Markdown, CSV and a picture."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from .benchmarks import BENCHMARKS
from .columns import NOT_IN_MEAN, beside, columns_of, mean_retained
from .records import write_whole
from .runs import JUDGED, PROXIES, Column, Run, comparable, cost, read_runs, retained

TITLES = {("mme", "perception"): "MME-P", ("mme", "total"): "MME"}
FEWER_ROWS = "*"
CSV_HEADER = (
    *("family", "run", "method", "benchmark", "part", "value", "retained"),
    *("tokens", "stages", "seconds_per_question", "questions", "missing", "unparsed", "source"),
)


def title(column: Column) -> str:
    """Of a column, such as "GQA", "MME-P" or "refcoco_val"."""
    if column[1] == JUDGED:
        return f"{BENCHMARKS[column[0]].title} (0-5)"
    if column[1] in PROXIES:
        return f"{BENCHMARKS[column[0]].title} proxy: {column[1].removesuffix(' (%)')}"
    return TITLES.get(column) or column[1] or BENCHMARKS[column[0]].title


def _shown(value: float | None, run: Run) -> str:
    """Published numbers as they are printed, ours with as many digits as papers have."""
    if value is None:
        return "-"
    if run.source:
        return str(value).removesuffix(".0") if value >= 1000 else str(value)
    return f"{value:.2f}" if value <= 5 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _of(number: int, total: int) -> str:
    """Over how many benchmarks a mean is, where not over all."""
    return f" ({number})" if number < total else ""


def _line(run: Run, runs: list[Run], columns: list[Column], num_benchmarks: int) -> list[str]:
    cells = []
    for column in columns:
        value = run.scores.get(column)
        has_gap = run.counts.get(column[0], (0, 0, 0))[1] > 0
        cells.append(_shown(value, run) + FEWER_ROWS * (has_gap and value is not None))
    mean, number = mean_retained(run, runs, columns)
    of_retained = _of(number, len(set(columns) - NOT_IN_MEAN))
    names = comparable(run, runs)
    spent = cost(run, names)
    of_cost = "" if run.source else _of(len(names), num_benchmarks)
    stages = ", ".join(f"{layer}: {tokens:.1f}".removesuffix(".0") for layer, tokens in spent.stages)
    return [
        run.name,
        *cells,
        "-" if mean is None else f"{mean:.1f}{of_retained}",
        "-" if spent.tokens is None else f"{spent.tokens:.1f}".removesuffix(".0") + of_cost,
        stages or "-",
        "-" if spent.seconds is None else f"{spent.seconds:.3f}{of_cost}",
        run.source or "here",
    ]


def _table(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = {0, len(widths) - 1}  # words, where the rest are numbers
    rule = ["-" * width if place in ends else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if place in ends else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |\n"
        for line in [lines[0], rule, *lines[1:]]
    )


def markdown(runs: list[Run], notes: Iterable[str] = ()) -> str:
    """A table a family, the published rows below our own."""
    parts = []
    for family in dict.fromkeys(run.family for run in runs):
        own = sorted((run for run in runs if run.family == family), key=lambda run: (run.method != "dense", run.name))
        columns = columns_of(own)
        published = beside(runs, family, columns)
        header = ["", *map(title, columns), "retained %", "tokens", "from layer: tokens"]
        header += ["seconds per question", "source"]
        num_benchmarks = len({name for run in own for name in run.measured})
        lines = [_line(run, runs, columns, num_benchmarks) for run in own]
        lines += [_line(run, published, columns, num_benchmarks) for run in published]
        parts.append(f"## {family}\n\n{_table([header, *lines])}")
        if any(run.counts[name][1] for run in own for name in run.counts):
            gaps = [f"{run.name} {name} {run.counts[name][1]}" for run in own for name in run.counts]
            gaps = [gap for gap in gaps if not gap.endswith(" 0")]
            parts.append(f"{FEWER_ROWS} questions without an answer, which count as wrong: {'; '.join(gaps)}.\n")
    parts.append(
        "Retained is the mean over benchmarks of the score as a percentage of the dense run's, of a published row of "
        "the dense row of its own source; in brackets over how many, where not over all. MME is perception and "
        "cognition, MME-P perception alone, which is left out of that mean; every split of RefCOCO counts. Tokens are "
        "those of an image, averaged over the decoder's layers; they and the seconds are means over the rows of those "
        "benchmarks that the dense run answered too, or of all where it has none, in brackets over how many, where not "
        "over all that are answered here. The CSV has them of each benchmark.\n"
    )
    return "\n".join([*parts, *(f"- {note}\n" for note in notes)])


def csv_text(runs: list[Run]) -> str:
    """A line a run and column, with all digits and the cost of that benchmark; what is not known is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for family in dict.fromkeys(run.family for run in runs):
        own = [run for run in runs if run.family == family]
        columns = columns_of(own)
        for group in (own, beside(runs, family, columns)):
            for run in group:
                kept = retained(run, runs if group is own else group)
                for column in columns:
                    if column in run.scores:
                        spent = cost(run, [column[0]])
                        stages = ", ".join(f"{layer}: {tokens:g}" for layer, tokens in spent.stages)
                        seconds = None if spent.seconds is None else round(spent.seconds, 6)
                        counts = run.counts.get(column[0], (None,) * 3)
                        line = [family, run.name, run.method, *column, run.scores[column], kept.get(column)]
                        writer.writerow([*line, spent.tokens, stages, seconds, *counts, run.source or "here"])
    return stream.getvalue()


def report(folders: list[str | Path], output: str | Path) -> str:
    """Make report.md, report.csv and report.png of some folders of answers.

    Args:
        folders: that the scripts wrote into.
        output: folder for the files; it is made.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError: if there are no scores.
        ValueError: for scores that are none, or two runs of one name.
    """
    from .report_chart import plot  # matplotlib is slow to import

    runs, notes = read_runs(folders)
    text = markdown(runs, notes)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "report.md", text.encode())
    write_whole(output / "report.csv", csv_text(runs).encode())
    plot(runs, output / "report.png")
    return text
