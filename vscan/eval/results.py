"""Scores on the screen and in `scores.json`, and the runs of a folder of answers.

evaluate          answers -> `scores.json`, what a server or a judge needs, and printed scores
answered          a folder of answers -> what was answered there
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .benchmark import Benchmark, Scores
from .benchmarks import BENCHMARKS, SUBMISSIONS
from .records import write_whole

ANSWERS, SCORES = "answers.jsonl", "scores.json"


def number(value) -> str:
    """A number as it is shown: counts whole, others with two digits; None is not known."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def lines(benchmark: Benchmark, scores: Scores) -> list[str]:
    """What is printed: the score, how many rows it is of, its parts, proxies and what one must know of it."""
    head = f"{benchmark.name}: {'not to be had here' if scores.value is None else number(scores.value)}"
    shown = [
        f"{head} ({scores.metric})",
        f"  rows {scores.num_questions}, missing {scores.num_missing}, unparsed {scores.num_unparsed}",
    ]
    for name, part in scores.parts.items():
        if isinstance(part, dict):
            part = ", ".join(f"{key} {number(value)}" for key, value in part.items())
        shown.append(f"  {name}: {part if isinstance(part, str) else number(part)}")
    shown += [f"  proxy, not the metric: {name}: {number(value)}" for name, value in scores.proxies.items()]
    if scores.num_missing:
        shown.append(f"  note: {scores.num_missing} rows have no answer and count as wrong")
    return shown + [f"  note: {note}" for note in scores.notes]


def scores_file(answers: Path) -> Path:
    """Where the scores of answers go: `scores.json` beside answers.jsonl or in a folder of answers, which are one run's
    alone; else <name>.scores.json, for LLaVA keeps the answers of all models in one folder."""
    if answers.is_dir():
        return answers / SCORES
    return answers.with_name(SCORES if answers.name == ANSWERS else f"{answers.stem}.{SCORES}")


def evaluate(benchmark: Benchmark, answers: Path, folder: Path, output: Path | None = None) -> None:
    """Score answers, write that, and print it.

    Args:
        benchmark: which.
        answers: an answers file, or a folder of them where the benchmark has several.
        folder: the benchmark's.
        output: the file to write; None is `scores_file` of the answers.

    Raises:
        FileNotFoundError, ValueError: for files that are missing or wrong.
        OSError: if `output` cannot be written; beside the answers that is only said.
    """
    scores = benchmark.score(answers, folder)
    file = output or scores_file(answers)
    content = {"benchmark": benchmark.name, "answers": answers.name, **asdict(scores)}
    written = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        if output is not None:
            raise
        print(f"not written: {file} ({error.strerror}); --output says where else", file=sys.stderr)
    else:
        written = [f"  written: {file}", *_submit(benchmark, answers, folder, file.parent)]
    _show([*lines(benchmark, scores), *written])


def _show(shown: list[str]) -> None:
    """Print lines. Where nobody reads them any more, as behind `| head`, what is left to do is done all the same."""
    try:
        print("\n".join(shown), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process


def _submit(benchmark: Benchmark, answers: Path, folder: Path, output: Path) -> list[str]:
    """Write what a server or a judge needs, where that is not what was scored; returns what is to be said of it."""
    shown = []
    for submission in SUBMISSIONS.get(benchmark.name, ()) if answers.suffix == ".jsonl" else ():
        file = submission.file(answers, output)
        try:
            submission.write(answers, folder, file)
        except (OSError, ValueError) as error:
            shown.append(f"  not written: {file.name}, for a server or a judge: {' '.join(str(error).split())}")
        else:
            shown.append(f"  written: {file}, for a server or a judge")
    return shown


def answered(folder: str | Path) -> Iterator[tuple[Benchmark, Path]]:
    """What was answered in a folder that the scripts wrote: <family>/<benchmark>/<method-budget>/answers.jsonl.

    Returns:
        For each the benchmark and the answers: the file, or the folder where there is one file a split (RefCOCO).
    """
    for name, benchmark in BENCHMARKS.items():
        for file in sorted(Path(folder).resolve().rglob("*.jsonl")):
            if file.parent.parent.name == name and file.name == ANSWERS:
                yield benchmark, file
        if name == "refcoco":
            splits = Path(folder).resolve().rglob("refcoco*_*.jsonl")
            runs = {file.parent for file in splits if file.parent.parent.name == name and file.name.count(".") == 1}
            yield from ((benchmark, run) for run in sorted(runs))


def evaluate_all(answers: Path, data: Path) -> int:
    """Score everything that was answered; an error in one does not keep others from their scores.

    Args:
        answers: folder of the answers.
        data: LLaVA's eval folder, with a folder a benchmark; a run of its first rows has its own data beside it.

    Returns:
        How many could not be scored.

    Raises:
        FileNotFoundError: if there are no answers.
    """
    found = list(answered(answers))
    if not found:
        expected = f"<benchmark>/<method-budget>/{ANSWERS} with a benchmark of {', '.join(BENCHMARKS)}"
        raise FileNotFoundError(f"expected answers in {str(answers)!r} as {expected}, found none")
    num_errors = 0
    for benchmark, file in found:
        run = file if file.is_dir() else file.parent
        folder = run / "data" if (run / "data").is_dir() else data / benchmark.folder
        _show([f"{run}:"])
        try:
            evaluate(benchmark, file, folder)
        except (OSError, ValueError) as error:
            num_errors += 1
            print(f"error: {benchmark.name}:", " ".join(str(error).split()), file=sys.stderr)
    return num_errors
