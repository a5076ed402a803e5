"""What was run: scores, what the runs cost, and what papers print for the same model.

read_runs         folders of answers -> runs
read_published    published.csv -> rows of papers
retained          scores and those of the dense model -> percent
comparable        the benchmarks that the dense model answered too
cost              tokens and seconds over the rows of some benchmarks
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .benchmark import numbered_rows
from .benchmarks import BENCHMARKS
from .gold import read_json
from .lines import check_stats, read_record
from .results import ANSWERS, SCORES
from .video import BENCHMARKS as OF_VIDEOS

PUBLISHED = Path(__file__).with_name("published.csv")
JUDGED = "score (0 to 5)"  # of videos, beside their accuracy
PROXIES = ("exact match (%)", "contains the answer (%)")  # of videos, where no judge need be asked
MODELS = {  # of the families of scripts
    "llava1_5": "LLaVA-1.5-7B",
    "v1_5": "LLaVA-1.5-7B",
    "llava1_6": "LLaVA-NeXT-7B",
    "v1_6": "LLaVA-NeXT-7B",
    "qwen2_5_vl": "Qwen2.5-VL-7B",
    "video_llava": "Video-LLaVA-7B",
}
VIDEOS = {benchmark.name for benchmark in OF_VIDEOS}
Column = tuple[str, str]  # benchmark, and the part of its scores; "" is the score itself


@dataclass
class Rows:
    """What the records say of one benchmark's answers.

    Args:
        stages: of each row with an image, its [layer, tokens] pairs.
        seconds: of each row.
        num_layers: of the decoder; None where that is not known.
    """

    stages: list[list] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    num_layers: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Args:
        stages: [layer, tokens] of the images, their mean; empty where they do not have the same layers.
        tokens: of an image, the average over the decoder's layers; None where the number of layers is not known.
        seconds: of a question; None where that is not known.
    """

    stages: list[list[float]] = field(default_factory=list)
    tokens: float | None = None
    seconds: float | None = None


@dataclass
class Run:
    """One line of the table: one method and budget, on every benchmark that it was run on.

    Args:
        family: the folder of the family, such as llava1_5; for a published row the model.
        name: the folder of method and budget, such as vscan-11.1; for a published row both.
        source: where the numbers come from; "" for our own.
        method: such as vscan, or dense.
        scores: by column.
        counts: by benchmark the questions, and those without an answer or with one that could not be read.
        rows: by benchmark what its answers cost.
        tokens: of a published row, as its budget says; None of our own, which `cost` tells.
        models: the checkpoint of each benchmark, where the record names it.
    """

    family: str
    name: str
    source: str = ""
    method: str = ""
    scores: dict[Column, float] = field(default_factory=dict)
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    tokens: float | None = None
    models: dict[str, str] = field(default_factory=dict)

    @property
    def measured(self) -> list[str]:
        """The benchmarks of which records say what they cost."""
        return [name for name, rows in self.rows.items() if rows.stages or rows.seconds]


def columns_of(benchmark: str, content: dict) -> dict[Column, float | None]:
    """The columns that a benchmark's scores fill: its value, and those of its parts that papers print by themselves."""
    parts = content.get("parts", {})
    if benchmark == "mme":
        return {("mme", part): parts.get(part) for part in ("perception", "total")}
    if benchmark == "refcoco":
        return {("refcoco", part): value for part, value in parts.items() if not isinstance(value, dict)}
    judged = {(benchmark, ""): content.get("value"), (benchmark, JUDGED): parts.get(JUDGED)}
    proxies = content.get("proxies", {}) if benchmark in VIDEOS else {}
    return judged | {(benchmark, name): proxies.get(name) for name in PROXIES}


def read_runs(folders: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read what the scripts and `vscan.eval` wrote: <family>/<benchmark>/<method-budget>/scores.json.

    Returns:
        The runs, those of the first folder first, and what could not be used of the folders, a sentence each.

    Raises:
        FileNotFoundError: if there are no scores.
        ValueError: for a file of scores that is none.
    """
    runs: dict[tuple[str, str], Run] = {}
    notes = []
    for file in dict.fromkeys(file.resolve() for folder in folders for file in sorted(Path(folder).rglob(SCORES))):
        content = read_json(file)
        name = content.get("benchmark") if isinstance(content, dict) else None
        if name not in BENCHMARKS:
            notes.append(f"{file}: not of vscan.eval; score these answers again")
            continue
        key = file.parents[2].name, file.parent.name
        run = runs.setdefault(key, Run(*key))
        if name in run.counts:
            raise ValueError(f"expected one run of {name} for {'/'.join(key)}, got a second one in {str(file)!r}")
        run.counts[name] = _counts(content, file)
        found = columns_of(name, content)
        run.scores |= {column: value for column, value in found.items() if value is not None}
        if content.get("value") is None:
            notes.append(f"{'/'.join(key)}, {name}: only a server or a judge can score it")
        _read_rows(run, name, file.parent)
    if not runs:
        expected = f"<family>/<benchmark>/<method-budget>/{SCORES}, which python -m vscan.eval NAME writes"
        raise FileNotFoundError(f"expected {expected}, found none in {', '.join(map(str, folders))}")
    return list(runs.values()), notes


def _counts(content: dict, file: Path) -> tuple[int, ...]:
    names = ("num_questions", "num_missing", "num_unparsed")
    wrong = {name: content.get(name) for name in names if type(content.get(name)) is not int}
    value, parts = content.get("value"), content.get("parts", {})
    if wrong or not isinstance(value, int | float | None) or not isinstance(parts, dict):
        raise ValueError(f"{file}: expected scores with {', '.join(names)}, value and parts, got {str(content)[:80]!r}")
    return tuple(content[name] for name in names)


def _read_rows(run: Run, name: str, folder: Path) -> None:
    """Add what the records beside a benchmark's answers say: method, checkpoint, and what each row cost."""
    rows = run.rows[name] = Rows()
    answers = [file for file in (folder / ANSWERS, *sorted(folder.glob("refcoco*_*.jsonl"))) if file.is_file()]
    for file in answers:
        record, stats = (file.with_name(f"{file.name}.{ending}") for ending in ("run.json", "stats.jsonl"))
        if record.is_file():
            content = read_record(record)
            run.method = content["reduction"].get("method", "vscan") if content.get("reduction") else "dense"
            run.models[name] = content.get("model_path", "")
            rows.num_layers = _num_layers(Path(run.models[name]))
        for number, row in numbered_rows(stats) if stats.is_file() else []:
            check_stats(row, f"{stats}, line {number}")
            if "seconds" in row:
                rows.seconds.append(row["seconds"])
            if row.get("visual_tokens") and row.get("stages"):
                rows.stages.append(row["stages"])


def _num_layers(model: Path) -> int | None:
    """Of a checkpoint's decoder; None where its config is not there, or leaves it to a default."""
    try:
        config = json.loads((model / "config.json").read_bytes())
        return config.get("num_hidden_layers") or config["text_config"]["num_hidden_layers"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def comparable(run: Run, runs: list[Run]) -> list[str]:
    """The benchmarks over which a run's cost compares with others: those that its dense run answered too, or all of
    its own where it has none."""
    names = [name for name in run.measured if any(_is_reference(dense, run, name) for dense in runs)]
    return names or run.measured


def cost(run: Run, benchmarks: Iterable[str]) -> Cost:
    """Mean tokens and seconds over all rows of some benchmarks; of a published row only the tokens are known."""
    rows = [run.rows[name] for name in benchmarks if name in run.rows]
    seconds = [value for each in rows for value in each.seconds]
    stages = [stages for each in rows for stages in each.stages]
    averages = [_over_layers(stages, each.num_layers) for each in rows for stages in each.stages]
    layers = {tuple(layer for layer, _ in each) for each in stages}
    means = []
    if len(layers) == 1:
        tokens = np.mean([[tokens for _, tokens in each] for each in stages], axis=0)
        means = [[layer, float(mean)] for layer, mean in zip(*layers, tokens, strict=True)]
    known = averages and None not in averages
    return Cost(
        stages=means,
        tokens=float(np.mean(averages)) if known else run.tokens,
        seconds=float(np.mean(seconds)) if seconds else None,
    )


def _over_layers(stages: list, num_layers: int | None) -> float | None:
    if len(stages) == 1:
        return stages[0][1]
    if num_layers is None:
        return None
    ends = [layer for layer, _ in stages[1:]] + [num_layers]
    return sum(tokens * (end - start) for (start, tokens), end in zip(stages, ends, strict=True)) / num_layers


def read_published(model: str | None) -> list[Run]:
    """The rows that papers print of a model, a `Run` for each method and budget of each source."""
    runs: dict[tuple[str, ...], Run] = {}
    with open(PUBLISHED, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["model"] != model:
                continue
            dense = row["method"] == "dense"
            name = "dense" if dense else f"{row['method']} {row['budget']}"
            run = runs.setdefault((row["source"], name), Run(model, name, row["source"]))
            run.method = row["method"].rstrip("†").lower()
            run.tokens = float(row["budget"]) if row["budget"].isdecimal() else None
            run.scores[row["benchmark"], row["part"]] = float(row["value"])
    return list(runs.values())


def retained(run: Run, runs: list[Run]) -> dict[Column, float]:
    """What a run keeps of the dense model's scores, in percent: of our run with the same checkpoint and number of
    questions, or of the same source's dense row."""
    kept = {}
    for column, value in run.scores.items():
        for dense in runs:
            if dense.scores.get(column) and _is_reference(dense, run, column[0]):
                kept[column] = 100 * value / dense.scores[column]
                break
    return kept


def _is_reference(dense: Run, run: Run, benchmark: str) -> bool:
    """Whether this is the dense run, or published dense row, on the same questions of a benchmark."""
    counts = [each.counts.get(benchmark, (0,))[0] for each in (dense, run)]
    if dense.method != "dense" or dense.source != run.source or counts[0] != counts[1]:
        return False
    models = [each.models.get(benchmark) for each in (dense, run)]
    return models[0] == models[1] if all(models) else dense.family == run.family
