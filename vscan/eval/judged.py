"""A judge's verdicts on answers about videos, in the layouts that Video-ChatGPT's scripts write, and their tally."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .benchmark import read_rows
from .gold import read_json


@dataclass(frozen=True)
class Tally:
    """What verdicts come to.

    Args:
        accuracy: yes / (yes + no) of the readable verdicts, in percent; None if there is neither.
        score: the sum of their whole scores, 0 to 5, by the number of all verdicts, unreadable ones too; None if no
            verdict is readable.
        num_yes: verdicts that say yes.
        num_unreadable: verdicts without a yes or no, or without a score.
    """

    accuracy: float | None
    score: float | None
    num_yes: int
    num_unreadable: int


def read_verdicts(answers_file: str | Path) -> dict[str, object] | None:
    """The verdicts beside an answers file.

    Returns:
        By question id; a verdict is whatever the judge said. None if there are no such files.

    Raises:
        ValueError: for several layouts at once, or a file of another format.
    """
    file = Path(answers_file)
    places = [file.with_name(file.name + ending) for ending in (".judged", ".judged.json", ".judged.jsonl")]
    found = [place for place in places if place.exists()]
    # Video-LLaVA's script writes a folder, whose name is the judge's, and in the end one file of all.
    for names in (("results.json",), ("gpt3.5", "gpt3.5-0.0", "gpt3-0.25")):
        found = found or [file.with_name(name) for name in names if file.with_name(name).exists()]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"expected the verdicts in one place, got {' and '.join(place.name for place in found)}")
    return _read(found[0])


def _read(place: Path) -> dict[str, object]:
    if place.is_dir():
        return {file.stem: _verdict(_forgiving(file)) for file in sorted(place.glob("*.json"))}
    if place.suffix == ".json":
        content = read_json(place)
        if not isinstance(content, dict):
            raise ValueError(f"{place}: expected an object from question ids to verdicts, got a list")
        return {str(question_id): _verdict(entry) for question_id, entry in content.items()}
    verdicts = {}
    for number, row in enumerate(read_rows(place), start=1):
        question_id = str(row.get("id", row.get("question_id")))
        if question_id in (*verdicts, "None"):
            raise ValueError(f"{place}, row {number}: expected an id that no other row has, got {question_id!r}")
        verdicts[question_id] = row
    return verdicts


def _forgiving(file: Path):
    """A judge's file, or None where it holds no JSON: that is an unreadable verdict, not a wrong folder."""
    try:
        return read_json(file)
    except ValueError:
        return None


def _verdict(entry):
    """Video-ChatGPT writes a list of the verdict and what was judged."""
    return entry[0] if isinstance(entry, list) and entry else entry


def _read_verdict(verdict) -> tuple[bool, int] | None:
    """Whether a verdict says yes, and its score, 4.8 cut to 4 as published; None for one without either."""
    if not isinstance(verdict, dict) or not isinstance(verdict.get("pred"), str):
        return None
    said = verdict["pred"].lower()
    if "yes" not in said and "no" not in said:
        return None
    try:
        return "yes" in said, int(verdict.get("score"))
    except (OverflowError, TypeError, ValueError):
        return None


def tally(verdicts: Iterable) -> Tally:
    """Count verdicts as Video-ChatGPT does.

    Args:
        verdicts: objects {"pred": "yes" or "no", "score": 0 to 5}, or whatever else a judge said.
    """
    read = [_read_verdict(verdict) for verdict in verdicts]
    readable = [pair for pair in read if pair is not None]
    num_yes = sum(yes for yes, _ in readable)
    return Tally(
        accuracy=100 * num_yes / len(readable) if readable else None,
        score=sum(number for _, number in readable) / len(read) if readable else None,
        num_yes=num_yes,
        num_unreadable=len(read) - len(readable),
    )
