"""DocVQA and InfoVQA by a few rows: the nearest of several right answers counts, from one half on."""

import json

import pytest

from vscan.eval.document import BENCHMARKS, write_questions
from vscan.eval.gold import write_json, write_rows

DOCVQA, INFOVQA = BENCHMARKS
SUFFIX = "\nAnswer the question using a single word or phrase."


def entry(question_id, question, answers, **more):
    return {"questionId": question_id, "question": question, "answers": answers, "data_split": "val", **more}


GOLD = [
    entry(49153, "What is the ‘actual’ value?", ["0.28"], image="documents/a_1.png", question_types=["figure"]),
    entry(
        24580, "Name?", ["University of California", "UC"], image="documents/b.png", question_types=["form", "figure"]
    ),
    entry(57349, "Which company?", ["Itc Limited"], image="documents/b.png", question_types=["form"]),
    entry(24581, "Where?", ["San Diego"], image="documents/c.png", question_types=[]),
]


def answer(row, text):
    question_id, question = GOLD[row]["questionId"], GOLD[row]["question"]
    return {"question_id": question_id, "prompt": question + SUFFIX, "text": text}


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "val_v1.0_withQT.json", {"dataset_name": "docvqa", "data": GOLD})
    return tmp_path


def write_answers(folder, *rows):
    write_rows(folder / "answers.jsonl", rows)
    return folder / "answers.jsonl"


def test_the_nearest_answer_counts(folder):
    rows = [answer(0, "0.23"), answer(1, "uc"), answer(2, " ")]
    scores = DOCVQA.score(write_answers(folder, *rows), folder)
    assert scores.value == pytest.approx(100 * (0.75 + 1 + 0 + 0) / 4)
    assert (scores.metric, scores.num_questions, scores.num_missing, scores.num_unparsed) == ("ANLS (%)", 4, 1, 1)
    assert scores.parts == {"types": {"figure": pytest.approx(87.5), "form": 50}}
    assert scores.notes == ()


def test_ids_that_are_strings_are_the_same(folder):
    row = {**answer(3, "SAN  Diego."), "question_id": "24581"}
    assert DOCVQA.score(write_answers(folder, row), folder).value == pytest.approx(100 * 0.9 / 4)


def test_posters_are_read_from_their_own_files(tmp_path):
    entries = [entry(98313, "How many?", ["3", "three"], image_local_name="20471.jpeg", answer_type=["single span"])]
    write_json(tmp_path / "infographicsVQA_val_v1.0.json", {"data": [{**entries[0], "image_url": "http"}]})
    row = {"question_id": 98313, "prompt": "How many?" + SUFFIX, "text": "Three"}
    scores = INFOVQA.score(write_answers(tmp_path, row), tmp_path)
    assert (scores.value, scores.parts) == (100, {"types": {"single span": 100}})
    write_questions(tmp_path, INFOVQA, tmp_path / "llava_infovqa_val.jsonl")
    assert json.loads((tmp_path / "llava_infovqa_val.jsonl").read_text())["image"] == "20471.jpeg"


def test_the_official_file_becomes_a_question_file(folder):
    write_questions(folder, DOCVQA, folder / "llava_docvqa_val.jsonl")
    rows = [json.loads(line) for line in (folder / "llava_docvqa_val.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0] == {
        "question_id": 49153,
        "image": "a_1.png",
        "text": "What is the ‘actual’ value?" + SUFFIX,
        "category": "default",
    }
    assert DOCVQA.files[0].find(folder).name == "llava_docvqa_val.jsonl"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer(0, "x"), answer(0, "x")], "row 2: expected one answer a question, got another one to '49153'"),
        ([{**answer(0, "x"), "question_id": 1}], "row 1: expected an answer to one of the questions, got one to '1'"),
        ([{**answer(0, "x"), "prompt": "Name?"}], "got 1 of 1 to others of the same ids; the first is 'Name"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        DOCVQA.score(write_answers(folder, *rows), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"data": [{"questionId": 1, "question": "?", "image": "a"}]},
            r"entry 0: expected answers \(list\)",
        ),  # test split
        ({"data": [entry(1, "?", [], image="a")]}, "entry 0: expected answers to be some strings, got"),
        ({"data": [entry(1, "?", ["x"])]}, "entry 0: expected image or image_local_name to be a name, got None"),
        ({"data": []}, "expected a list of questions"),
    ],
)
def test_a_file_without_what_is_needed_is_refused(folder, content, message):
    write_json(folder / "val_v1.0_withQT.json", content)
    with pytest.raises(ValueError, match=message):
        DOCVQA.score(write_answers(folder, answer(0, "x")), folder)


def test_a_missing_file_is_named(folder):
    with pytest.raises(
        FileNotFoundError, match=r"expected infographicsVQA_val_v1.0_withQT.json or infographicsVQA_val"
    ):
        INFOVQA.score(write_answers(folder), folder)
