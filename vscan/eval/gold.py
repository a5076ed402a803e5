"""What the scorers share: right answers out of JSON files, given answers out of jsonl files, shares in percent."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .benchmark import numbered_rows, parse_json
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
        content = parse_json(Path(file).read_bytes())
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


def check_types(entries: Iterable[dict], key: str, is_right: Callable[[object], bool], expected: str, file) -> None:
    """Raise ValueError unless what lies under a key, where it is there at all, is of the right type; names the entry.

    Args:
        entries: objects of a file.
        key: that an entry may have.
        is_right: whether a value is.
        expected: what a value should be, in words.
        file: that they came from, for errors.
    """
    for number, entry in enumerate(entries):
        if key in entry and not is_right(entry[key]):
            raise ValueError(f"{file}, entry {number}: expected {key} to be {expected}, got {str(entry[key])[:60]!r}")


def are_words(value) -> bool:
    """Whether a value is a list of strings; a string is none."""
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def read_answers(file: str | Path, with_prompt: bool = False) -> list[dict]:
    """Read an answers file, each row of which holds at least question_id and text.

    Args:
        file: LLaVA's jsonl.
        with_prompt: whether each row must hold its prompt too, which tells the question where ids do not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a row without them, or with a prompt that is no string, naming its line.
    """
    rows = []
    for number, row in numbered_rows(file):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(f"{file}, line {number}: expected question_id and text (str), got {str(row)[:80]!r}")
        if not isinstance(row.get("prompt", None if with_prompt else ""), str):
            got = repr(row["prompt"])[:60] if "prompt" in row else "none: the prompt tells which question was answered"
            raise ValueError(f"{file}, line {number}: expected prompt (str), got {got}")
        rows.append(row)
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
        Notes if some answers have no prompt, or a few prompts do not hold their question.

    Raises:
        ValueError: if most do not.
    """
    pairs = [(question, answer) for question, answer in zip(questions, joined, strict=True) if answer is not None]
    asked = [pair for pair in pairs if isinstance(pair[1].get("prompt"), str)]
    notes = ()
    if len(asked) < len(pairs):
        notes = (f"{len(pairs) - len(asked)} answers have no prompt: their ids alone tell the question.",)
    other = [pair for pair in asked if _squeezed(pair[0]["question"]) not in _squeezed(pair[1]["prompt"])]
    if not other:
        return notes
    question, answer = other[0]
    if 2 * len(other) > len(asked):
        raise ValueError(
            f"{file}: expected answers to the questions of this benchmark, got {len(other)} of {len(asked)} to others "
            f"of the same ids; the first is {answer['prompt'][:60]!r} for {question['question'][:60]!r}"
        )
    return (*notes, f"{len(other)} of {len(asked)} prompts do not hold the question of their id.")


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
