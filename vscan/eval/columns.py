"""What stands beside what in a report: its columns, the mean over them, and the published rows below our own."""

from collections.abc import Iterable

from .benchmarks import BENCHMARKS
from .runs import JUDGED, MODELS, PROXIES, Column, Run, read_published, retained

BESIDE = ("", JUDGED, *PROXIES)  # parts of a benchmark about videos, in their order
# Of a total, or beside an accuracy.
NOT_IN_MEAN = {("mme", "perception"), *((name, part) for name in BENCHMARKS for part in BESIDE[1:])}


def columns_of(runs: Iterable[Run]) -> list[Column]:
    """All columns that runs fill, benchmarks in their order; where there is a proxy, also what papers print."""
    order = list(BENCHMARKS)
    found = dict.fromkeys(column for run in runs for column in run.scores)
    found |= {(name, part): None for name, proxy in found if proxy in PROXIES for part in BESIDE[:2]}
    parts = {part: number for number, part in enumerate(BESIDE)}
    return sorted(found, key=lambda column: (order.index(column[0]), parts.get(column[1], 0)))


def mean_retained(run: Run, runs: list[Run], columns: list[Column]) -> tuple[float | None, int]:
    """The mean of what is retained over benchmarks, and over how many; of MME the total counts."""
    kept = [value for column, value in retained(run, runs).items() if column in columns and column not in NOT_IN_MEAN]
    return (sum(kept) / len(kept) if kept else None), len(kept)


def beside(runs: list[Run], family: str, columns: list[Column]) -> list[Run]:
    """The published rows to print beside a family's runs: of its model and of the methods that were run, where they
    fill a column, with the dense rows of the same sources; where there are none, the dense rows of VScan's tables."""
    methods = {run.method for run in runs if run.family == family}
    rows = [row for row in read_published(MODELS.get(family)) if set(columns) & row.scores.keys()]
    sources = {row.source for row in rows if row.method in methods - {"dense"}}
    sources = sources or {row.source for row in rows if row.source.startswith("VScan")}
    return [row for row in rows if row.source in sources and row.method in methods | {"dense"}]
