"""MMBench and MMBench-CN: a question counts if it is answered right with its options in every order.

mmbench_letter     what was said -> the letter that the published evaluation reads there
score              answers, or the table of a submission -> circular accuracy
write_submission   answers -> the xlsx file that the server takes
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import check_prompts, percent, percent_by, read_answers
from .mmbench import LETTERS, read_mmbench, read_table
from .sheet import read_sheet, write_sheet

COLUMNS = {"index", "question", "A", "answer"}


@dataclass(frozen=True)
class Sheet(DataFile):
    """An xlsx file with the right letters, such as an upload's, somewhere in the benchmark's folder."""

    def find(self, folder: str | Path) -> Path:
        """The first that can be read and has the columns, best of a path with the name of `paths`: uploads of both
        languages lie in folders of their tables' names.

        Raises:
            FileNotFoundError: if there is none, naming a file that cannot be read.
        """
        stem, broken = self.paths[0].split("/")[-2], ""
        for file in sorted(Path(folder).rglob("*.xlsx"), key=lambda file: (stem not in str(file), file)):
            if file.name.startswith((".", "~$")):  # what systems and office programs leave
                continue
            try:
                rows = read_sheet(file)
            except (OSError, ValueError) as error:
                broken = broken or f" that can be read ({file.name}: {error})"
                continue
            if rows and rows[0].keys() >= COLUMNS:
                return file
        raise FileNotFoundError(f"expected an xlsx file in {str(folder)!r} ({self.purpose}), found none{broken}")


TABLES = {
    "mmbench": DataFile(("mmbench_dev_20230712.tsv",), 4377, "questions"),
    "mmbench_cn": DataFile(
        ("mmbench_dev_cn_20231003.tsv", "../mmbench/mmbench_dev_cn_20231003.tsv"), purpose="questions"
    ),
}
SHEETS = {
    name: Sheet((f"answers_upload/{Path(table.paths[0]).stem}/*.xlsx",), table.num_rows, required=False)
    for name, table in TABLES.items()
}
COPY = 1_000_000  # the copies of a question with other orders have its index plus a multiple of this
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")  # of a submission
PREDICTION_PLACE = 6  # among a submission's columns


def mmbench_letter(text: str, letters: str = LETTERS) -> str | None:
    """The letter of an answer as the published evaluation reads it; None is what it gives to a judge.

    Its rule: with marks as spaces, exactly one letter of the options is among the words, and it first comes as one of
    the last four: "A cat, so B" names two, "B is what I see there" has it too early.

    Args:
        text: what was said.
        letters: of the question's options.
    """
    words = text.translate(MARKS).split()
    found = [letter for letter in letters if letter in words]
    return found[0] if len(found) == 1 and words.index(found[0]) > len(words) - 5 else None


def read_gold(folder: str | Path, name: str) -> tuple[Path, list[dict[str, str]]]:
    """The rows with their right letters: from the table, else from an xlsx file that has them, such as an upload's.

    Returns:
        The file, and its rows with at least index, question, A and answer.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: for a row without an index of its own or without its right letter, naming it.
    """
    if TABLES[name].is_in(folder):
        table = TABLES[name].find(folder)
        rows = read_table(table, {"index", "question", "A"})
        if rows and "answer" in rows[0]:
            return table, _checked(rows, table)
    try:
        sheet = SHEETS[name].find(folder)
    except FileNotFoundError as error:
        places = " or ".join(TABLES[name].paths)
        raise FileNotFoundError(
            f"expected a column answer in {places}, or {str(error).removeprefix('expected ')}"
        ) from error
    return sheet, _checked(read_sheet(sheet), sheet)


def _checked(rows: list[dict[str, str]], file: str | Path) -> list[dict[str, str]]:
    """The rows; raises ValueError for one without an index of its own or without its right letter."""
    known = set()
    for number, row in enumerate(rows):
        index = _index(row["index"])
        if index < 0 or row["answer"] not in tuple(LETTERS):
            got = f"{row['index']!r} and {row['answer']!r}"
            raise ValueError(f"{file}, row {number}: expected an index and the right letter, got {got}")
        if index in known:
            raise ValueError(f"{file}, row {number}: expected an index that no other row has, got {row['index']!r}")
        known.add(index)
    return rows


def _index(text: str) -> int:
    return int(float(text)) if text.replace(".", "", 1).isdecimal() else -1


def _key(row: dict) -> int:
    """The index, of a row or of an answer; other files have other ids than numbers."""
    return _index(str(row.get("question_id", row.get("index"))))


def _rows_of_answers(answers: Path, folder: Path, name: str) -> tuple[list[dict], list[str | None], tuple[str, ...]]:
    """The rows of the benchmark, for each what was said (None where nothing was), and notes."""
    if Path(answers).suffix == ".xlsx":
        rows = read_sheet(answers)
        missing = (COLUMNS | {"prediction"}) - set(rows[0] if rows else ())
        if missing:
            raise ValueError(f"{answers}: expected rows with the columns {sorted(missing)}, got none")
        return _checked(rows, answers), [row["prediction"] or None for row in rows], ()
    _, rows = read_gold(folder, name)
    joined = join(rows, read_answers(answers), answers, _key)
    return rows, [answer and answer["text"] for answer in joined], check_prompts(rows, joined, answers)


def score(answers: Path, folder: Path, name: str) -> Scores:
    """Circular accuracy in percent of the questions, each with all its copies.

    Args:
        answers: LLaVA's jsonl, or an xlsx file with prediction and answer, which needs no other.
        folder: the benchmark's.
        name: mmbench or mmbench_cn.
    """
    rows, texts, notes = _rows_of_answers(answers, folder, name)
    options = ["".join(letter for letter in LETTERS if row.get(letter)) for row in rows]
    letters = [
        None if text is None else mmbench_letter(text, known) for text, known in zip(texts, options, strict=True)
    ]
    hits = [letter == row["answer"] for row, letter in zip(rows, letters, strict=True)]
    groups: dict[int, list[int]] = {}  # the numbers of their rows
    for number, row in enumerate(rows):
        groups.setdefault(_index(row["index"]) % COPY, []).append(number)
    circular = [all(hits[number] for number in group) for group in groups.values()]
    kinds = [rows[group[0]].get("l2-category") or rows[group[0]].get("category") for group in groups.values()]
    by_kind = percent_by((kind, hit) for kind, hit in zip(kinds, circular, strict=True) if kind)
    first = [hit for row, hit in zip(rows, hits, strict=True) if _index(row["index"]) < COPY]
    lacking = sum(len(group) < len(options[group[0]]) for group in groups.values())
    if lacking:
        notes += (f"{lacking} of {len(groups)} groups lack copies of their question",)
    unread = sum(text is not None and letter is None for text, letter in zip(texts, letters, strict=True))
    if unread:
        notes += (f"{unread} answers have no single letter and are wrong here; the server asks a judge about them",)
    parts = {"first pass": percent(first) if first else 0.0, "groups": len(groups)}
    return Scores(
        value=percent(circular),
        metric="circular accuracy (%)",
        parts={**parts, "categories": by_kind} if by_kind else parts,
        num_questions=len(rows),
        num_missing=texts.count(None),
        num_unparsed=unread,
        notes=notes,
    )


def write_submission(answers_file: str | Path, table: str | Path, output: str | Path) -> None:
    """Write the xlsx file that mmbench.opencompass.org.cn takes: the table's columns, without pictures, and prediction.

    Args:
        answers_file: LLaVA's jsonl.
        table: the tsv file that was asked.
        output: the file to write.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for answers that are not to this table, given twice or missing.
    """
    rows = read_table(table, {"index", "question", "A"})
    joined = join(rows, read_answers(answers_file), answers_file, _key)
    if None in joined:
        index = rows[joined.index(None)]["index"]
        missing = f"{joined.count(None)} are missing, the first of index {index}"
        raise ValueError(f"{answers_file}: expected answers to all {len(rows)} rows of {Path(table).name}, {missing}")
    columns = [name for name in rows[0] if name not in LEFT_OUT]
    place = min(PREDICTION_PLACE, len(columns))
    lines: list[list] = [[*columns[:place], "prediction", *columns[place:]]]
    for row, answer in zip(rows, joined, strict=True):
        cells = [int(row[name]) if name == "index" and row[name].isdecimal() else row[name] or None for name in columns]
        lines.append([*cells[:place], answer["text"], *cells[place:]])
    write_sheet(output, lines)


def _check(folder: Path, name: str) -> list[str]:
    """Every row must show a picture, and have its right letter where any file has them."""
    entries = read_mmbench(TABLES[name].find(folder))
    has_answers = any("answer" in row for row in read_table(TABLES[name].find(folder), {"index"})[:1])
    if has_answers or SHEETS[name].is_in(folder):
        read_gold(folder, name)
    short = [entry["index"] for entry in entries if len(entry["options"]) < 2]
    return [f"{len(short)} rows have less than two options, the first is index {short[0]}"] if short else []


def _benchmark(name: str, title: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        folder=name,
        files=(TABLES[name], SHEETS[name]),
        score=partial(score, name=name),
        check=partial(_check, name=name),
    )


BENCHMARKS = (_benchmark("mmbench", "MMB"), _benchmark("mmbench_cn", "MMB-CN"))
