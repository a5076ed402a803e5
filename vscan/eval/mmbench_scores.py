"""MMBench and MMBench-CN: a question counts if it is answered right with its options in every order.

mmbench_letter     what was said -> the letter that the published evaluation reads there
score              answers, or the table of a submission -> circular accuracy
write_submission   answers -> the xlsx file that the server takes
"""

from contextlib import suppress
from functools import partial
from pathlib import Path

from .benchmark import Benchmark, DataFile, Scores, join
from .gold import check_prompts, percent, percent_by, read_answers
from .mmbench import LETTERS, read_mmbench, read_table

TABLES = {
    "mmbench": DataFile(("mmbench_dev_20230712.tsv",), 4377, "questions"),
    "mmbench_cn": DataFile(
        ("mmbench_dev_cn_20231003.tsv", "../mmbench/mmbench_dev_cn_20231003.tsv"), purpose="questions"
    ),
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


def read_sheet(file: str | Path) -> list[dict[str, str]]:
    """Read the first sheet of an xlsx file; cells are strings, an empty one is "".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is none.
    """
    from openpyxl import load_workbook  # only here is it needed

    if not Path(file).is_file():
        raise FileNotFoundError(f"expected a file at {str(file)!r}, found none")
    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # zipfile's, openpyxl's or XML's own
        raise ValueError(f"{file}: expected an xlsx file, got {error}") from error
    header, *lines = [["" if cell is None else str(cell) for cell in line] for line in book.worksheets[0].values] or [
        []
    ]
    book.close()
    return [dict(zip(header, line, strict=False)) for line in lines if any(line)]


def read_gold(folder: str | Path, name: str) -> tuple[Path, list[dict[str, str]]]:
    """The rows with their right letters: from the table, else from an xlsx file that has them, such as an upload's.

    Returns:
        The file, and its rows with at least index, question, A and answer.

    Raises:
        FileNotFoundError: if there is neither.
    """
    with suppress(FileNotFoundError):
        table = TABLES[name].find(folder)
        rows = read_table(table, {"index", "question", "A"})
        if rows and "answer" in rows[0]:
            return table, rows
    stem = Path(TABLES[name].paths[0]).stem  # uploads lie in a folder of that name
    for sheet in sorted(Path(folder).rglob("*.xlsx"), key=lambda sheet: (stem not in str(sheet), sheet)):
        rows = read_sheet(sheet)
        if rows and {"index", "question", "A", "answer"} <= rows[0].keys():
            return sheet, rows
    places = " or ".join(TABLES[name].paths)
    raise FileNotFoundError(f"expected a column answer in {places} or an xlsx file in {str(folder)!r}, found none")


def _index(text: str) -> int:
    return int(float(text)) if text.replace(".", "", 1).isdecimal() else -1


def _key(row: dict) -> int:
    """The index, of a row or of an answer; other files have other ids than numbers."""
    return _index(str(row.get("question_id", row.get("index"))))


def _rows_of_answers(answers: Path, folder: Path, name: str) -> tuple[list[dict], list[str | None], tuple[str, ...]]:
    """The rows of the benchmark, for each what was said (None where nothing was), and notes."""
    if Path(answers).suffix == ".xlsx":
        rows = read_sheet(answers)
        missing = {"index", "question", "A", "prediction", "answer"} - set(rows[0] if rows else ())
        if missing:
            raise ValueError(f"{answers}: expected rows with the columns {sorted(missing)}, got none")
        return rows, [row["prediction"] or None for row in rows], ()
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
    letters = [
        text and mmbench_letter(text, "".join(letter for letter in LETTERS if row.get(letter)))
        for row, text in zip(rows, texts, strict=True)
    ]
    groups: dict[int, list[bool]] = {}
    first, kinds = [], {}
    for number, (row, letter) in enumerate(zip(rows, letters, strict=True)):
        index = _index(row["index"])
        if index < 0 or row["answer"] not in tuple(LETTERS):
            got = f"{row['index']!r} and {row['answer']!r}"
            raise ValueError(f"row {number} of {name}: expected an index and the right letter, got {got}")
        groups.setdefault(index % COPY, []).append(letter == row["answer"])
        kinds.setdefault(index % COPY, row.get("l2-category") or row.get("category"))
        if index < COPY:
            first.append(letter == row["answer"])
    circular = {index: all(hits) for index, hits in groups.items()}
    by_kind = percent_by((kinds[index], hit) for index, hit in circular.items() if kinds[index])
    unread = sum(text is not None and letter is None for text, letter in zip(texts, letters, strict=True))
    if unread:
        notes += (f"{unread} answers have no single letter and are wrong here; the server asks a judge about them",)
    return Scores(
        value=percent(list(circular.values())),
        metric="circular accuracy (%)",
        parts={
            "first pass": percent(first) if first else 0.0,
            "groups": len(groups),
            **({"categories": by_kind} if by_kind else {}),
        },
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
    from openpyxl import Workbook

    rows = read_table(table, {"index", "question", "A"})
    joined = join(rows, read_answers(answers_file), answers_file, _key)
    if None in joined:
        index = rows[joined.index(None)]["index"]
        missing = f"{joined.count(None)} are missing, the first of index {index}"
        raise ValueError(f"{answers_file}: expected answers to all {len(rows)} rows of {Path(table).name}, {missing}")
    columns = [name for name in rows[0] if name not in LEFT_OUT]
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    place = min(PREDICTION_PLACE, len(columns))
    sheet.append([*columns[:place], "prediction", *columns[place:]])
    for row, answer in zip(rows, joined, strict=True):
        cells = [int(row[name]) if name == "index" and row[name].isdecimal() else row[name] or None for name in columns]
        sheet.append([*cells[:place], answer["text"], *cells[place:]])
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    book.save(output)


def _check(folder: Path, name: str) -> list[str]:
    """Every row must show a picture, and have its right letter where the table has any."""
    entries = read_mmbench(TABLES[name].find(folder))
    short = [entry["index"] for entry in entries if len(entry["options"]) < 2]
    return [f"{len(short)} rows have less than two options, the first is index {short[0]}"] if short else []


def _benchmark(name: str, title: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        folder=name,
        files=(TABLES[name],),
        score=partial(score, name=name),
        check=partial(_check, name=name),
    )


BENCHMARKS = (_benchmark("mmbench", "MMB"), _benchmark("mmbench_cn", "MMB-CN"))
