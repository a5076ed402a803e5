"""MMBench: all orders of a question must be right; from answers and table, or from the table of a submission."""

import csv
import json
import zipfile

import pytest
from openpyxl import Workbook, load_workbook

from vscan.eval.check import check_benchmark
from vscan.eval.mmbench_scores import BENCHMARKS, mmbench_letter, score, write_submission
from vscan.eval.sheet import read_sheet

COLUMNS = [  # as published
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
]
# (index, question, options, right, what was said)
ROWS = [
    (7, "Which?", ["None", "NA"], "A", "A"),
    (1000007, "Which?", ["NA", "None"], "B", "B."),
    (8, "What is it?", ["one", "two", "three"], "C", "C"),
    (1000008, "What is it?", ["two", "three", "one"], "B", "A"),  # wrong in one order
    (2000008, "What is it?", ["three", "one", "two"], "A", "A"),
    (9, "Say\nwhere", ["x", "y"], "B", "A or B"),  # two letters
    (10, "Who?", ["x", "y"], "A", "D"),  # no option of this question
]


def table(folder, name="mmbench_dev_20230712.tsv", columns=COLUMNS):
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(columns)
        for index, question, options, right, _ in ROWS:
            cells = dict(zip("ABCD", options, strict=False), index=index, question=question, answer=right, image="aGk=")
            cells |= {"category": "fine", "l2-category": "color" if index % 1000000 < 9 else "place", "split": "dev"}
            writer.writerow([cells.get(column, "") for column in columns])
    return folder


ALL = range(len(ROWS))


def answers(folder, rows=ALL, prompt="{}\nA. x"):
    lines = [
        {"question_id": index, "round_id": 0, "prompt": prompt.format(question), "text": said}
        for index, question, _, _, said in (ROWS[row] for row in rows)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("C. a cat", "C"),
        ("Answer: D", "D"),
        ("[A]", "A"),
        ("A or B", None),
        ("I am sure that it is B", "B"),
        ("B is what I see here now", None),  # six words, the letter first
        ("B is what I see", None),
        ("B is what I", "B"),
        ("a", None),
        ("AB", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_published(text, letter):
    assert mmbench_letter(text) == letter


def test_a_letter_that_is_no_option_is_not_read():
    assert mmbench_letter("D", "AB") is None
    assert mmbench_letter("A D", "AB") == "A"


def check_scores(scores):
    assert scores.value == pytest.approx(25)  # of four groups the first alone
    assert scores.parts["first pass"] == pytest.approx(50)
    assert scores.parts["groups"] == 4
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (7, 0, 2)
    assert "2 answers have no single letter" in scores.notes[-1]


def test_all_orders_must_be_right(tmp_path):
    table(tmp_path)
    scores = score(answers(tmp_path, rows=[3, 6, 0, 5, 2, 1, 4]), tmp_path, "mmbench")
    check_scores(scores)
    assert scores.parts["categories"] == {"color": 50.0, "place": 0.0}


def test_a_missing_row_makes_its_group_wrong_and_is_counted(tmp_path):
    table(tmp_path)
    scores = score(answers(tmp_path, rows=[0, 2, 3]), tmp_path, "mmbench")
    assert (scores.value, scores.num_missing) == (0, 4)
    assert scores.parts["groups"] == 4


def test_the_submission_has_the_published_columns_and_says_the_same(tmp_path):
    table(tmp_path)
    write_submission(answers(tmp_path), tmp_path / "mmbench_dev_20230712.tsv", tmp_path / "out" / "a.xlsx")
    header, first, *_ = load_workbook(tmp_path / "out" / "a.xlsx").worksheets[0].values
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert first == (7, "Which?", "None", "NA", None, None, "A", "A", "dev")
    (tmp_path / "mmbench_dev_20230712.tsv").unlink()
    check_scores(score(tmp_path / "out" / "a.xlsx", tmp_path / "none", "mmbench"))
    check_scores(score(answers(tmp_path), tmp_path, "mmbench"))  # gold from the xlsx file in the folder


def test_a_submission_with_gaps_is_refused(tmp_path):
    table(tmp_path)
    with pytest.raises(
        ValueError, match=r"all 7 rows of mmbench_dev_20230712.tsv, 1 are missing, the first of index 8"
    ):
        write_submission(
            answers(tmp_path, rows=[0, 1, 3, 4, 5, 6]), tmp_path / "mmbench_dev_20230712.tsv", tmp_path / "x"
        )


def test_tables_of_fewer_columns_make_a_submission_too(tmp_path):
    columns = ["index", "question", "A", "B", "C", "D", "image", "split"]
    table(tmp_path, columns=columns)
    write_submission(answers(tmp_path), tmp_path / "mmbench_dev_20230712.tsv", tmp_path / "a.xlsx")
    assert list(read_sheet(tmp_path / "a.xlsx")[0]) == ["index", "question", "A", "B", "C", "D", "prediction", "split"]
    with pytest.raises(
        FileNotFoundError, match=r"expected a column answer in mmbench_dev_20230712.tsv, or an xlsx file"
    ):
        score(answers(tmp_path), tmp_path, "mmbench")
    with pytest.raises(ValueError, match=r"expected rows with the columns"):
        score(tmp_path / "a.xlsx", tmp_path, "mmbench")


def test_answers_to_the_other_language_are_told_by_their_words(tmp_path):
    """Both tables have the same indices."""
    table(tmp_path, "mmbench_dev_cn_20231003.tsv")
    with pytest.raises(ValueError, match="7 of 7 to others of the same ids"):
        score(answers(tmp_path, prompt="哪一个？"), tmp_path, "mmbench_cn")
    assert score(answers(tmp_path), tmp_path, "mmbench_cn").value == 25


def test_the_chinese_table_may_lie_in_the_other_folder(tmp_path):
    table(tmp_path / "mmbench", "mmbench_dev_cn_20231003.tsv")
    assert score(answers(tmp_path), tmp_path / "mmbench_cn", "mmbench_cn").value == 25


def test_gold_of_uploads_is_that_of_the_table_that_was_asked(tmp_path):
    """Uploads of both languages lie in one folder; their paths tell them apart."""
    table(tmp_path)
    for name, letter in (("mmbench_dev_20230712", "A"), ("mmbench_dev_cn_20231003", "B")):
        place = tmp_path / "data" / "answers_upload" / name / "m.xlsx"
        file = table(tmp_path / name) / "mmbench_dev_20230712.tsv"
        file.write_text(file.read_text().replace("\t\tA\tfine", f"\t\t{letter}\tfine"))
        write_submission(answers(tmp_path), file, place)
    assert score(answers(tmp_path), tmp_path / "data", "mmbench").value == 25
    assert score(answers(tmp_path), tmp_path / "data", "mmbench_cn").value == 0


def test_second_answers_wrong_letters_and_files_that_are_none_are_refused(tmp_path):
    table(tmp_path)
    with pytest.raises(ValueError, match="row 8: expected one answer a question, got another one to 7"):
        score(answers(tmp_path, rows=[*ALL, 0]), tmp_path, "mmbench")
    (tmp_path / "b.xlsx").write_text("no")
    with pytest.raises(ValueError, match=r"b.xlsx: expected an xlsx file with a sheet, got "):
        score(tmp_path / "b.xlsx", tmp_path, "mmbench")
    book = Workbook()
    for row in (["index", "question", "A", "prediction", "answer"], [1, "Which?", "x", "A", "maybe"]):
        book.active.append(row)
    book.save(tmp_path / "c.xlsx")
    with pytest.raises(ValueError, match=r"c.xlsx, row 0: expected an index and the right letter, got '1' and 'maybe'"):
        score(tmp_path / "c.xlsx", tmp_path, "mmbench")


def test_rows_with_one_option_are_told(tmp_path):
    assert BENCHMARKS[0].check(table(tmp_path)) == []
    file = tmp_path / "mmbench_dev_20230712.tsv"
    file.write_text(file.read_text().replace("None\tNA", "None\t", 1))
    assert BENCHMARKS[0].check(tmp_path) == ["1 rows have less than two options, the first is index 7"]


def sheet(file, rows, columns=("index", "question", "A", "B", "answer")):
    """An xlsx file with the right letters."""
    file.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    for row in (columns, *rows):
        book.active.append(row)
    book.save(file)
    return file


GOLD = [(7, "Which?", "None", "NA", "A"), (1000007, "Which?", "NA", "None", "B")]


def test_cells_that_begin_with_an_equals_sign_are_words(tmp_path):
    assert read_sheet(sheet(tmp_path / "g.xlsx", [(7, "=A", "=1+1", "#N/A", "A")]))[0]["A"] == "=1+1"
    file = table(tmp_path) / "mmbench_dev_20230712.tsv"
    file.write_text(file.read_text().replace("None\tNA", "=x\t#N/A", 1))
    said = answers(tmp_path)
    said.write_text(said.read_text().replace('"text": "A"', '"text": "=A"'))
    write_submission(said, file, tmp_path / "u.xlsx")
    first = next(load_workbook(tmp_path / "u.xlsx").active.iter_rows(min_row=2))
    assert [(first[column].value, first[column].data_type) for column in (2, 3, 6)] == [
        *(("=x", "s"), ("#N/A", "s"), ("=A", "s"))
    ]
    assert read_sheet(tmp_path / "u.xlsx")[0]["prediction"] == "=A"


def test_control_characters_do_not_reach_the_submission(tmp_path):
    table(tmp_path)
    said = answers(tmp_path)
    said.write_text(said.read_text().replace('"text": "B."', '"text": "B\\u0000\\u001b."'))
    write_submission(said, tmp_path / "mmbench_dev_20230712.tsv", tmp_path / "u.xlsx")
    assert read_sheet(tmp_path / "u.xlsx")[1]["prediction"] == "B."


def damaged(file, sheets):
    """An xlsx file whose sheet is cut, or that has none."""
    whole = sheet(file.with_name("whole.xlsx"), GOLD)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if "worksheets/" in name:
                content = content[: len(content) // 2]
            if name == "xl/workbook.xml" and not sheets:
                content = content[: content.index(b"<sheets>")] + content[content.index(b"</sheets>") + 9 :]
            target.writestr(name, content)
    whole.unlink()
    return file


@pytest.mark.parametrize("sheets", [True, False])
def test_damaged_tables_are_refused(tmp_path, sheets):
    with pytest.raises(ValueError, match=r"bad.xlsx: expected an xlsx file with a sheet, got "):
        read_sheet(damaged(tmp_path / "bad.xlsx", sheets))


def test_gold_is_found_beside_hidden_locked_and_broken_files(tmp_path):
    for name in ("._g.xlsx", "~$g.xlsx", "a.xlsx"):
        (tmp_path / name).write_text("no")
    with pytest.raises(FileNotFoundError, match=r"or an xlsx file in .*, found none that can be read \(a.xlsx: "):
        score(answers(tmp_path, rows=[0, 1]), tmp_path, "mmbench")
    sheet(tmp_path / "g.xlsx", GOLD)
    assert score(answers(tmp_path, rows=[0, 1]), tmp_path, "mmbench").value == 100


@pytest.mark.parametrize("kind", ["gold", "submission", "table"])
def test_an_index_that_comes_twice_is_refused(tmp_path, kind):
    said = answers(tmp_path, rows=[0])
    if kind == "gold":
        sheet(tmp_path / "g.xlsx", [GOLD[0], GOLD[0]])
    elif kind == "table":
        file = table(tmp_path) / "mmbench_dev_20230712.tsv"
        file.write_text(file.read_text().replace("1000007", "7"))
    else:
        said = sheet(
            tmp_path / "s.xlsx", [(7, "Which?", "x", "A", "A")] * 2, ("index", "question", "A", "prediction", "answer")
        )
    with pytest.raises(ValueError, match="row 1: expected an index that no other row has, got '7'"):
        score(said, tmp_path, "mmbench")


def test_an_empty_answer_is_unparsed(tmp_path):
    table(tmp_path)
    said = answers(tmp_path)
    said.write_text(said.read_text().replace('"text": "C"', '"text": ""'))
    scores = score(said, tmp_path, "mmbench")
    assert (scores.num_missing, scores.num_unparsed) == (0, 3)


def test_groups_without_all_orders_are_noted(tmp_path):
    table(tmp_path)
    assert score(answers(tmp_path), tmp_path, "mmbench").notes[0] == "2 of 4 groups lack copies of their question"
    sheet(tmp_path / "g" / "g.xlsx", GOLD)
    assert score(answers(tmp_path, rows=[0, 1]), tmp_path / "g", "mmbench").notes == ()


def test_check_looks_at_the_letters_and_counts_the_sheet(tmp_path):
    file = table(tmp_path) / "mmbench_dev_20230712.tsv"
    content = file.read_text()
    file.write_text(content.replace("\tB\tfine", "\tE\tfine", 1))
    with pytest.raises(ValueError, match="row 1: expected an index and the right letter, got '1000007' and 'E'"):
        BENCHMARKS[0].check(tmp_path)
    file.write_text(content)
    sheet(tmp_path / "answers_upload" / "g.xlsx", GOLD)
    assert "g.xlsx 2" in check_benchmark(BENCHMARKS[0], tmp_path).there  # of 4377: a problem, too
    sheet(tmp_path / "answers_upload" / "g.xlsx", [(*GOLD[0][:4], "E")])
    file.write_text(content.replace("\tanswer\t", "\tother\t"))
    with pytest.raises(ValueError, match=r"g.xlsx, row 0: expected an index and the right letter, got '7' and 'E'"):
        BENCHMARKS[0].check(tmp_path)
