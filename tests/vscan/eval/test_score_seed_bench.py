"""SEED-Bench by a few rows: the letter and nothing else, for pictures and videos."""

import json

import pytest

from vscan.eval.gold import write_json, write_rows
from vscan.eval.seed_bench import BENCHMARK, score, write_submission

TYPES = {"Scene Understanding": 1, "Instance Counting": 5, "Action Recognition": 10}


def entry(question_id, answer, kind, data_type="image"):
    question = {"question_id": question_id, "question": f"What is {question_id}?", "answer": answer}
    return {**question, "question_type_id": kind, "data_type": data_type, "data_id": "1454426_2591111986"}


GOLD = [
    entry("101669", "A", 1),
    entry("102", "B", 1),
    entry("103", "C", 5),
    entry(104, "D", 10, "video"),
    entry("105", "A", 10, "video"),
]


def answer(question_id, text):
    return {"question_id": question_id, "prompt": f"What is {question_id}?\nA. x\nB. y", "text": text}


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "SEED-Bench.json", {"question_type": TYPES, "questions": GOLD})
    questions = [{"question_id": row["question_id"], "text": "?", "image": "SEED-Bench-image/1"} for row in GOLD]
    write_rows(tmp_path / "llava-seed-bench.jsonl", questions)
    return tmp_path


def write_answers(folder, *rows):
    write_rows(folder / "answers.jsonl", rows)
    return folder / "answers.jsonl"


def test_only_the_letter_itself_is_right(folder):
    rows = [answer(101669, "A"), answer("102", "B."), answer("103", "c"), answer("104", "D")]
    scores = score(write_answers(folder, *rows), folder)
    assert (scores.value, scores.num_questions, scores.num_missing, scores.num_unparsed) == (40, 5, 1, 2)
    assert scores.parts == {
        "image": pytest.approx(100 / 3),
        "video": 50,
        "dimensions": {"Action Recognition": 50, "Instance Counting": 0, "Scene Understanding": 50},
    }
    assert scores.notes == ()


@pytest.mark.parametrize("text", ["", "AB", "E", " A", "A\n"])
def test_what_is_no_letter_is_counted(folder, text):
    scores = score(write_answers(folder, answer("102", "B"), answer("103", text)), folder)
    assert (scores.value, scores.num_unparsed) == (20, 1)


def test_the_upload_holds_every_question(folder):
    write_submission(write_answers(folder, answer("104", "D"), answer("102", "B.")), folder, folder / "up.jsonl")
    assert [json.loads(line) for line in (folder / "up.jsonl").read_text().splitlines()] == [
        {"question_id": "101669", "prediction": ""},
        {"question_id": "102", "prediction": "B."},
        {"question_id": "103", "prediction": ""},
        {"question_id": 104, "prediction": "D"},
        {"question_id": "105", "prediction": ""},
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer("102", "A"), answer(102, "A")], "row 2: expected one answer a question"),
        ([answer("7", "A")], "row 1: expected an answer to one of the questions, got one to '7'"),
        (
            [{**answer("102", "A"), "prompt": "Is it?"}],
            "expected answers to the questions of this benchmark, got 1 of 1",
        ),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        score(write_answers(folder, *rows), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOLD, "expected an object with questions, and question_type from names to ids"),
        (
            {"question_type": TYPES, "questions": [entry("1", "A", 3)]},
            r"entry 0: expected a question_type_id of \[1, 5,",
        ),
        (
            {"question_type": TYPES, "questions": [entry("1", "A", 5, "text")]},
            "data_type image or video, got 5 and 'text'",
        ),
        ({"question_type": TYPES}, "expected a list of questions, got 'None'"),
    ],
)
def test_a_file_of_another_format_is_refused(folder, content, message):
    write_json(folder / "SEED-Bench.json", content)
    with pytest.raises(ValueError, match=message):
        score(write_answers(folder, answer("102", "A")), folder)


def test_files_are_checked(folder):
    assert BENCHMARK.check(folder) == []
    write_json(folder / "SEED-Bench.json", {"question_type": TYPES, "questions": [*GOLD[1:], entry("9", "A", 1)]})
    assert BENCHMARK.check(folder) == [
        "1 questions have no entry in SEED-Bench.json, such as '101669'",
        "1 entries of SEED-Bench.json have no question, such as '9'",
    ]
