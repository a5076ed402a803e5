"""What a benchmark is: where its files lie, which questions and answers belong together, how answers are scored.

Every benchmark is a file of this folder with a `BENCHMARK`; `vscan.eval.benchmarks` has them by name.
"""

import codecs
import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """A file or an image folder of a benchmark.

    Args:
        paths: where it may lie, relative to the benchmark's folder; the first that exists counts.
        num_rows: rows, entries or questions that the published file has; None where it is not known.
        purpose: "questions", "answers" (the right ones), or "images".
        required: whether nothing can be asked or scored without it.
    """

    paths: tuple[str, ...]
    num_rows: int | None = None
    purpose: str = "answers"
    required: bool = True

    def find(self, folder: str | Path) -> Path:
        """Where it lies.

        Raises:
            FileNotFoundError: naming all places that were looked at.
        """
        for path in self.paths:
            place = Path(os.path.normpath(Path(folder) / path))  # "../" also from a folder that is not there
            if place.exists():
                return place
        places = " or ".join(self.paths)
        raise FileNotFoundError(f"expected {places} in {str(folder)!r} ({self.purpose}), found none")

    def is_in(self, folder: str | Path) -> bool:
        """Whether it lies in one of its places."""
        try:
            self.find(folder)
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Args:
        value: the benchmark's own number, as published tables print it; None where only a judge can tell.
        metric: what the number is.
        parts: numbers by name that it is made of, or that are published beside it; may be nested once.
        num_questions: questions that there are.
        num_missing: of these without an answer. They count as wrong, and are never left out of an average.
        num_unparsed: answers in which nothing could be read that can be right.
        proxies: numbers by name that are *not* the benchmark's metric.
        notes: what a reader of the number must know, a sentence each.
    """

    value: float | None
    metric: str
    num_questions: int
    num_missing: int = 0
    num_unparsed: int = 0
    parts: dict = field(default_factory=dict)
    proxies: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        name: on the command line, such as "science_qa".
        title: in tables, as papers print it, such as "SQA".
        folder: in LLaVA's eval folder, such as "scienceqa".
        files: what belongs in there.
        score: from an answers file and the benchmark's folder to `Scores`.
        check: from that folder to what is wrong in it beyond missing files and rows, a sentence each.
    """

    name: str
    title: str
    folder: str
    files: tuple[DataFile, ...]
    score: Callable[[Path, Path], Scores]
    check: Callable[[Path], list[str]] = lambda folder: []


def parse_json(content: bytes):
    """Parse JSON, with a byte order mark or without.

    Raises:
        ValueError: for what is no JSON, no UTF-8, or is nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise ValueError(_no_utf8(error)) from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def check_utf8(content: bytes, file: str | Path) -> None:
    """Raise ValueError for a file of lines in another encoding, naming the line."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in content[:4]:
        encoding = "UTF-32" if b"\0\0" in content[:4] else "UTF-16"
        raise ValueError(f"{file}, line 1: expected UTF-8, got {encoding}; save the file as UTF-8")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        number = len(content[: error.start + 1].splitlines())
        raise ValueError(f"{file}, line {number}: expected UTF-8, got {_no_utf8(error)}") from error


def _no_utf8(error: UnicodeDecodeError) -> str:
    return f"the byte 0x{error.object[error.start]:02x}, as Latin-1 has it; save the file as UTF-8"


def read_rows(file: str | Path) -> list[dict]:
    """Read a file of JSON objects, one a line; blank lines are none.

    Raises:
        FileNotFoundError, ValueError: as `numbered_rows`.
    """
    return [row for _, row in numbered_rows(file)]


def numbered_rows(file: str | Path) -> list[tuple[int, dict]]:
    """Read a file of JSON objects, each with the number of its line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no JSON object, or no UTF-8, naming it.
    """
    if not os.path.isfile(file):  # unlike Path's, it stands a name that is too long
        raise FileNotFoundError(f"expected a file at {str(file)!r}, found none")
    content = Path(file).read_bytes()
    check_utf8(content, file)
    rows = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        shown = line.decode(errors="replace")[:60]
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected a JSON object, got {shown!r}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: expected a JSON object, got {shown!r}")
        rows.append((number, row))
    return rows


def asked(row: dict) -> tuple[str, str]:
    """What a question shares with its answer, a key for `join`: the id, and the words that were asked.

    An answer must have its prompt: `gold.read_answers` sees to that.
    """
    return str(row["question_id"]), row.get("prompt", row["text"])


def join(questions: list[dict], answers: list[dict], file: str | Path, key: Callable[[dict], object]) -> list:
    """Find the answer of every question. Question ids repeat in many benchmarks, so that rows are the keys.

    Args:
        questions: in the order of the question file.
        answers: in any order; those that share a key belong to the questions of that key in their order.
        file: that the answers came from, for errors.
        key: from a question or an answer to what both share, such as its question_id and text.

    Returns:
        For every question its answer, or None where there is none.

    Raises:
        ValueError: for an answer to no question of these, or a second one to the same, naming its row.
    """
    rows = defaultdict(list)
    for row, question in enumerate(questions):
        rows[key(question)].append(row)
    taken: dict[object, int] = defaultdict(int)
    joined: list = [None] * len(questions)
    for row, answer in enumerate(answers, start=1):
        which = key(answer)
        if which not in rows:
            raise ValueError(f"{file}, row {row}: expected an answer to one of the questions, got one to {which!r}")
        if taken[which] == len(rows[which]):
            raise ValueError(f"{file}, row {row}: expected one answer a question, got another one to {which!r}")
        joined[rows[which][taken[which]]] = answer
        taken[which] += 1
    return joined
