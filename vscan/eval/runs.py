"""What was run: scores, what the runs cost, and what papers print for the same model.

read_runs         folders of answers -> runs
read_published    published.csv -> rows of papers
retained          scores and those of the dense model -> percent
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .benchmark import read_rows
from .benchmarks import BENCHMARKS
from .gold import read_json
from .results import ANSWERS, SCORES

PUBLISHED = Path(__file__).with_name("published.csv")
JUDGED = "score (0 to 5)"  # of videos, beside their accuracy
MODELS = {  # of the families of scripts
    "llava1_5": "LLaVA-1.5-7B",
    "v1_5": "LLaVA-1.5-7B",
    "llava1_6": "LLaVA-NeXT-7B",
    "v1_6": "LLaVA-NeXT-7B",
    "qwen2_5_vl": "Qwen2.5-VL-7B",
    "video_llava": "Video-LLaVA-7B",
}
Column = tuple[str, str]  # benchmark, and the part of its scores; "" is the score itself


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
        stages: [layer, tokens] of the images, their mean.
        tokens: the average over the decoder's layers; None where the number of layers is not known.
        seconds: in answering; None where that is not known.
        models: the checkpoint of each benchmark, where the record names it.
    """

    family: str
    name: str
    source: str = ""
    method: str = ""
    scores: dict[Column, float] = field(default_factory=dict)
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    stages: list[list[float]] = field(default_factory=list)
    tokens: float | None = None
    seconds: float | None = None
    models: dict[str, str] = field(default_factory=dict)


def columns_of(benchmark: str, content: dict) -> dict[Column, float | None]:
    """The columns that a benchmark's scores fill: its value, and those of its parts that papers print by themselves."""
    parts = content.get("parts", {})
    if benchmark == "mme":
        return {("mme", part): parts.get(part) for part in ("perception", "total")}
    if benchmark == "refcoco":
        return {("refcoco", part): value for part, value in parts.items() if not isinstance(value, dict)}
    return {(benchmark, ""): content.get("value"), (benchmark, JUDGED): parts.get(JUDGED)}


def read_runs(folders: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read what the scripts and `vscan.eval` wrote: <family>/<benchmark>/<method-budget>/scores.json.

    Returns:
        The runs, and what could not be used of the folders, a sentence each.

    Raises:
        FileNotFoundError: if there are no scores.
        ValueError: for a file of scores that is none.
    """
    runs: dict[tuple[str, str], Run] = {}
    notes, parts = [], {}
    files = sorted({file.resolve() for folder in folders for file in Path(folder).rglob(SCORES)})
    for file in files:
        content = read_json(file)
        name = content.get("benchmark") if isinstance(content, dict) else None
        if name not in BENCHMARKS:
            notes.append(f"{file}: not of vscan.eval; score these answers again")
            continue
        key = file.parents[2].name, file.parent.name
        run = runs.setdefault(key, Run(*key))
        if name in run.counts:
            raise ValueError(f"expected one run of {name} for {'/'.join(key)}, got a second one in {str(file)!r}")
        run.counts[name] = tuple(content[count] for count in ("num_questions", "num_missing", "num_unparsed"))
        found = columns_of(name, content)
        run.scores |= {column: value for column, value in found.items() if value is not None}
        if content.get("value") is None:
            notes.append(f"{'/'.join(key)}, {name}: only a server or a judge can score it")
        _read_cost(run, name, file.parent, parts.setdefault(key, []))
    if not runs:
        expected = f"<family>/<benchmark>/<method-budget>/{SCORES}, which python -m vscan.eval NAME writes"
        raise FileNotFoundError(f"expected {expected}, found none in {', '.join(map(str, folders))}")
    for key, run in runs.items():
        _average(run, parts[key])
    return list(runs.values()), notes


def _read_cost(run: Run, name: str, folder: Path, parts: list) -> None:
    """Add what the records beside the answers say: method, seconds, and (stages, layers) of each row with an image."""
    answers = [file for file in (folder / ANSWERS, *sorted(folder.glob("refcoco*_*.jsonl"))) if file.is_file()]
    for file in answers:
        record, stats = (file.with_name(f"{file.name}.{ending}") for ending in ("run.json", "stats.jsonl"))
        layers = None
        if record.is_file():
            content = read_json(record)
            reduction = content.get("reduction")
            run.method = reduction.get("method", "vscan") if reduction else "dense"
            run.models[name] = content.get("model_path", "")
            layers = _num_layers(Path(run.models[name]))
        for row in read_rows(stats) if stats.is_file() else []:
            if "seconds" in row:
                run.seconds = (run.seconds or 0.0) + row["seconds"]
            if row.get("visual_tokens") and row.get("stages"):
                parts.append((row["stages"], layers))


def _num_layers(model: Path) -> int | None:
    """Of a checkpoint's decoder; None where its config is not there, or leaves it to a default."""
    try:
        config = json.loads((model / "config.json").read_bytes())
        return config.get("num_hidden_layers") or config["text_config"]["num_hidden_layers"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _average(run: Run, parts: list) -> None:
    """Mean stages over the rows, where all have the same layers, and mean tokens over rows and layers."""
    layers = {tuple(layer for layer, _ in stages) for stages, _ in parts}
    if len(layers) == 1:
        means = np.mean([[tokens for _, tokens in stages] for stages, _ in parts], axis=0)
        run.stages = [[layer, float(mean)] for layer, mean in zip(*layers, means, strict=True)]
    averages = [_over_layers(stages, num_layers) for stages, num_layers in parts]
    if averages and None not in averages:
        run.tokens = float(np.mean(averages))


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
            if dense.method == "dense" and _is_reference(dense, run, column[0]) and dense.scores.get(column):
                kept[column] = 100 * value / dense.scores[column]
                break
    return kept


def _is_reference(dense: Run, run: Run, benchmark: str) -> bool:
    if dense.source != run.source or dense.counts.get(benchmark, (0,))[0] != run.counts.get(benchmark, (0,))[0]:
        return False
    models = [each.models.get(benchmark) for each in (dense, run)]
    return models[0] == models[1] if all(models) else dense.family == run.family
