"""What the scorers share: right answers out of JSON files, given answers out of jsonl files, shares in percent."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .benchmark import read_rows
from .records import write_whole

SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."


def read_json(file: str | Path) -> dict | list:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no JSON object or list.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a file at {str(file)!r}, found none")
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(content, dict | list):
        raise ValueError(f"{file}: expected a JSON object or list, got {str(content)[:60]!r}")
    return content


def check_entries(entries, keys: dict[str, type], file: str | Path) -> list[dict]:
    """The entries of a file of right answers, each of which is an object with all the keys.

    Args:
        entries: what should be a list of objects.
        keys: that each must have -> the type of their values, `object` for any.
        file: that they came from, for errors.

    Raises:
        ValueError: for no list, an empty one, or an entry without the keys, naming it.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: expected a list of questions, got {str(entries)[:60]!r}")
    for number, entry in enumerate(entries):
        wrong = keys if not isinstance(entry, dict) else [key for key in keys if not _has(entry, key, keys[key])]
        if wrong:
            expected = ", ".join(f"{key} ({keys[key].__name__})" for key in wrong)
            raise ValueError(f"{file}, entry {number}: expected {expected}, got {str(entry)[:80]!r}")
    return entries


def _has(entry: dict, key: str, kind: type) -> bool:
    return key in entry and isinstance(entry[key], kind)


def check_words(entries: list[dict], file: str | Path) -> None:
    """Raise ValueError unless `answers` of every entry is a list of at least one string."""
    for number, entry in enumerate(entries):
        if not entry["answers"] or not all(isinstance(answer, str) for answer in entry["answers"]):
            got = str(entry["answers"])[:60]
            raise ValueError(f"{file}, entry {number}: expected answers to be some strings, got {got!r}")


def read_answers(file: str | Path) -> list[dict]:
    """Read an answers file, each row of which holds at least question_id and text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a row without them, naming it.
    """
    rows = read_rows(file)
    for number, row in enumerate(rows, start=1):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(f"{file}, row {number}: expected question_id and text (str), got {str(row)[:80]!r}")
    return rows


def identity(row: dict) -> str:
    """A key for `join` where ids are unique; files disagree about whether they are numbers or strings."""
    return str(row["question_id"])


def _squeezed(text: str) -> str:
    return " ".join(text.lower().split())


def check_prompts(questions: list[dict], joined: list, file: str | Path) -> tuple[str, ...]:
    """Are these the answers to these questions, or others whose ids happen to be the same?

    Args:
        questions: each with its `question`.
        joined: for each its answer or None, as `join` gives them.
        file: that the answers came from, for errors.

    Returns:
        A note if a few prompts do not hold their question, else none.

    Raises:
        ValueError: if most do not.
    """
    asked = [
        (question, answer)
        for question, answer in zip(questions, joined, strict=True)
        if answer is not None and isinstance(answer.get("prompt"), str)
    ]
    other = [pair for pair in asked if _squeezed(pair[0]["question"]) not in _squeezed(pair[1]["prompt"])]
    if not other:
        return ()
    question, answer = other[0]
    if 2 * len(other) > len(asked):
        raise ValueError(
            f"{file}: expected answers to the questions of this benchmark, got {len(other)} of {len(asked)} to others "
            f"of the same ids; the first is {answer['prompt'][:60]!r} for {question['question'][:60]!r}"
        )
    return (f"{len(other)} of {len(asked)} prompts do not hold the question of their id.",)


def percent(values: Sequence[float]) -> float:
    """The mean of values in [0, 1], in percent."""
    return 100 * sum(values) / len(values)


def percent_by(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values of each name, in percent; names in order."""
    groups = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return {name: percent(groups[name]) for name in sorted(groups)}


def unjoined(questions: Iterable, gold: Iterable, what: str) -> list[str]:
    """For a benchmark's `check`: a sentence if questions lack their right answer, or the other way round.

    Args:
        questions: keys of the question file.
        gold: keys of the file of right answers.
        what: names that file.
    """
    questions, gold = set(questions), set(gold)
    problems = []
    if questions - gold:
        some = ", ".join(map(repr, sorted(questions - gold, key=str)[:3]))
        problems.append(f"{len(questions - gold)} questions have no entry in {what}, such as {some}")
    if gold - questions:
        some = ", ".join(map(repr, sorted(gold - questions, key=str)[:3]))
        problems.append(f"{len(gold - questions)} entries of {what} have no question, such as {some}")
    return problems


def write_json(file: str | Path, content) -> None:
    """Write a JSON file, whole or not at all; its folder is made."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), json.dumps(content).encode())


def write_rows(file: str | Path, rows: Iterable[dict]) -> None:
    """Write a file of JSON objects, one a line, whole or not at all; its folder is made."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), "".join(json.dumps(row) + "\n" for row in rows).encode())
