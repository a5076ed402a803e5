"""VQAv2 by a few rows: ten people's answers counted by hand, and a submission that holds every question."""

import json

import pytest

from vscan.eval.gold import write_json, write_rows
from vscan.eval.vqav2 import BENCHMARK, score, write_submission

SUFFIX = "\nAnswer the question using a single word or phrase."


def person(number, answer):
    return {"answer": answer, "answer_confidence": "yes", "answer_id": number}


def annotation(question_id, answer_type, answers):
    people = [person(number, answer) for number, answer in enumerate(answers, start=1)]
    return {"question_id": question_id, "answer_type": answer_type, "answers": people, "image_id": 1}


def question(question_id):
    return {"question_id": question_id, "image": "a.jpg", "text": f"What is {question_id}?{SUFFIX}", "category": "x"}


def answer(question_id, text):
    return {"question_id": question_id, "prompt": question(question_id)["text"], "text": text}


@pytest.fixture
def folder(tmp_path):
    annotations = [
        annotation(1, "yes/no", ["Yes"] * 10),  # unanimous: the official code compares letter by letter
        annotation(2, "number", ["2"] * 2 + ["3"] * 8),
        annotation(3, "other", ["t-shirt"] * 9 + ["shirt"]),
        annotation(4, "other", ["red"] * 10),
        annotation(5, "yes/no", ["no"] * 10),
    ]
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    write_rows(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", map(question, (12, 11)))
    write_rows(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", map(question, (10, 11, 12)))
    (tmp_path / "test2015").mkdir()
    return tmp_path


def write_answers(folder, *rows):
    write_rows(folder / "answers.jsonl", rows)
    return folder / "answers.jsonl"


def test_both_countings_are_reported(folder):
    rows = [answer(1, "yes"), answer(2, "Two."), answer(3, "T shirt"), answer(4, "")]
    scores = score(write_answers(folder, *rows), folder)
    soft = [1, (2 * 1 + 8 * 2) / 30, 1, 0, 0]
    official = [0, *soft[1:]]
    assert scores.value == pytest.approx(100 * sum(soft) / 5)
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (5, 1, 1)
    assert scores.parts == {
        "number": pytest.approx(60),
        "other": 50,
        "yes/no": 50,
        "official code (words normalised only where people disagree)": pytest.approx(100 * sum(official) / 5),
    }
    assert scores.notes == ("Scored on val2014; published numbers are of test-dev.",)


def test_answers_to_test_dev_are_counted_and_not_scored(folder):
    scores = score(write_answers(folder, answer(11, "red")), folder)
    assert (scores.value, scores.num_questions, scores.num_missing, scores.num_unparsed) == (None, 2, 1, 0)
    (folder / "v2_mscoco_val2014_annotations.json").unlink()
    assert score(write_answers(folder, answer(12, "?"), answer(11, "red")), folder).num_unparsed == 1


def test_the_submission_holds_all_of_test2015(folder):
    write_submission(write_answers(folder, answer(12, "Two."), answer(11, "the Red")), folder, folder / "up.json")
    assert json.loads((folder / "up.json").read_text()) == [
        {"question_id": 10, "answer": ""},
        {"question_id": 11, "answer": "red"},
        {"question_id": 12, "answer": "2"},
    ]


def test_a_submission_without_a_shard_is_refused(folder):
    with pytest.raises(
        ValueError, match="expected answers to all questions of test-dev, 1 are missing, the first is 12"
    ):
        write_submission(write_answers(folder, answer(11, "red")), folder, folder / "up.json")
    assert not (folder / "up.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer(1, "yes"), answer(9, "yes")], "row 2: expected an answer to one of the questions"),
        ([answer(1, "yes"), answer(1, "yes")], "row 2: expected one answer a question"),
        ([answer(11, "yes"), answer(13, "yes")], "row 2: expected an answer to one of the questions"),
        ([{**answer(11, "yes"), "prompt": "What else?"}], "row 1: expected an answer to one of the questions"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        score(write_answers(folder, *rows), folder)


def test_no_answers_at_all_are_all_missing(folder):
    scores = score(write_answers(folder), folder)
    assert (scores.value, scores.num_missing) == (0, 5)


@pytest.mark.parametrize(
    ("people", "message"),
    [([], "entry 0, answers: expected a list"), (["yes"], r"answers, entry 0: expected answer \(str\)")],
)
def test_annotations_without_people_are_refused(folder, people, message):
    broken = {"annotations": [{"question_id": 1, "answers": people}]}
    write_json(folder / "v2_mscoco_val2014_annotations.json", broken)
    with pytest.raises(ValueError, match=message):
        score(write_answers(folder, answer(1, "yes")), folder)


def test_files_are_checked(folder):
    assert BENCHMARK.check(folder) == []
    write_rows(folder / "llava_vqav2_mscoco_test2015.jsonl", [question(11)])
    assert BENCHMARK.check(folder) == ["1 questions have no entry in llava_vqav2_mscoco_test2015.jsonl, such as '12'"]
