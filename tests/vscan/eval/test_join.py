"""Answers find their questions in any order, and nothing is lost or counted twice in silence."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscan.eval.benchmark import DataFile, asked, join, read_rows

# Few ids and texts: both repeat, as they do in MME and TextVQA.
QUESTIONS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab")), max_size=12)


def questions_of(pairs):
    return [{"question_id": number, "text": text} for number, text in pairs]


@given(QUESTIONS, st.randoms(use_true_random=False), st.data())
def test_every_answer_belongs_to_a_question_of_its_key(pairs, random, data):
    questions = questions_of(pairs)
    answers = [{"question_id": number, "prompt": text, "text": f"{row}"} for row, (number, text) in enumerate(pairs)]
    random.shuffle(answers)
    given_ = answers[: data.draw(st.integers(0, len(answers)))]
    joined = join(questions, given_, "a.jsonl", asked)
    assert len(joined) == len(questions)
    assert joined.count(None) == len(questions) - len(given_)
    assert sorted(answer["text"] for answer in joined if answer) == sorted(answer["text"] for answer in given_)
    for question, answer in zip(questions, joined, strict=True):
        assert answer is None or asked(answer) == asked(question)


@given(QUESTIONS)
def test_answers_in_order_stay_in_order(pairs):
    answers = [{"question_id": number, "prompt": text, "text": f"{row}"} for row, (number, text) in enumerate(pairs)]
    assert join(questions_of(pairs), answers, "a.jsonl", asked) == answers


@given(QUESTIONS.filter(len), st.data())
def test_one_answer_too_many_is_refused(pairs, data):
    answers = [{"question_id": number, "prompt": text, "text": ""} for number, text in pairs]
    again = data.draw(st.sampled_from(answers))
    with pytest.raises(ValueError, match=f"a.jsonl, row {len(pairs) + 1}: expected one answer a question, got another"):
        join(questions_of(pairs), [*answers, again], "a.jsonl", asked)


def test_an_answer_to_no_question_is_refused():
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: expected an answer to one of the questions, got one to "):
        join(questions_of([(1, "a")]), [{"question_id": 1, "prompt": "b", "text": ""}], "a.jsonl", asked)


def test_ids_are_the_same_as_numbers_and_as_strings():
    answer = {"question_id": "1", "prompt": "a", "text": ""}
    assert join(questions_of([(1, "a")]), [answer], "a.jsonl", asked) == [answer]


@pytest.mark.parametrize("line", ["{", "[]", "1", '{"a": 1}}'])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(json.dumps({}) + "\n\n" + line + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 3: expected a JSON object, got"):
        read_rows(tmp_path / "a.jsonl")


def test_the_first_place_that_exists_counts(tmp_path):
    file = DataFile(("a/x", "../b/x"), purpose="images")
    folder = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=r"expected a/x or ../b/x in .*none' \(images\), found none"):
        file.find(folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    assert file.find(folder) == tmp_path / "b" / "x"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x").touch()
    assert file.find(folder) == folder / "a" / "x"
