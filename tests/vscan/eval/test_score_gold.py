"""Files of right answers and of given ones: what is no such file is refused, what does not belong is noticed."""

import pytest

from vscan.eval.gold import check_entries, check_prompts, check_words, percent_by, read_answers, read_json, unjoined

ROW = '{"question_id": 1, "text": "é"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "gold.json: expected JSON, got "), ("3", "gold.json: expected a JSON object or list, got '3'")],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content, message):
    file = tmp_path / "gold.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json(file)
    with pytest.raises(FileNotFoundError, match=r"expected a file at .*none.json', found none"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "f: expected a list of questions, got 'None'"),
        ([], r"f: expected a list of questions, got '\[\]'"),
        ([{"a": "x", "b": 1}, 5], r"f, entry 1: expected a \(str\), b \(object\), got '5'"),
        ([{"a": 3, "b": 1}], r"f, entry 0: expected a \(str\), got "),
        ([{"a": "x"}], r"f, entry 0: expected b \(object\), got "),
    ],
)
def test_entries_without_their_keys_are_named(entries, message):
    with pytest.raises(ValueError, match=message):
        check_entries(entries, {"a": str, "b": object}, "f")


@pytest.mark.parametrize("answers", [[], [3], ["yes", None]])
def test_answers_that_are_no_words_are_named(answers):
    with pytest.raises(ValueError, match="f, entry 1: expected answers to be some strings, got "):
        check_words([{"answers": ["yes"]}, {"answers": answers}], "f")


@pytest.mark.parametrize("second", ['{"question_id": 2}', '{"text": "x"}', '{"question_id": 2, "text": null}'])
def test_a_row_that_is_no_answer_is_named(tmp_path, second):
    file = tmp_path / "answers.jsonl"
    file.write_text(ROW + "\n" + ROW, encoding="utf-8")
    assert [row["text"] for row in read_answers(file)] == ["é", "é"]
    file.write_text(ROW + second)
    with pytest.raises(ValueError, match=r"answers.jsonl, line 2: expected question_id and text \(str\), got "):
        read_answers(file)


def test_prompts_show_answers_to_other_questions():
    questions = [{"question": f"Is it {color}?"} for color in ("red", "blue", "green")]
    good = [{"prompt": f"is it  {color}?\nAnswer."} for color in ("Red", "blue", "green")]
    assert check_prompts(questions, good, "f") == ()
    note = "2 answers have no prompt: their ids alone tell the question."
    assert check_prompts(questions, [{"text": "x"}, None, {}], "f") == (note,)
    note = "1 of 3 prompts do not hold the question of their id."
    assert check_prompts(questions, [good[1], *good[1:]], "f") == (note,)
    with pytest.raises(
        ValueError, match="f: expected answers to the questions of this benchmark, got 2 of 3 to others"
    ):
        check_prompts(questions, [good[1], good[0], good[2]], "f")


def test_shares_are_of_each_name_in_order():
    assert list(percent_by([("b", 1), ("a", 0.5), ("b", 0)]).items()) == [("a", 50), ("b", 50)]
    assert percent_by([]) == {}


def test_what_does_not_join_is_said_in_a_sentence():
    assert unjoined("abc", "abc", "gold.json") == []
    assert unjoined("abxyz", "abc", "gold.json") == [
        "3 questions have no entry in gold.json, such as 'x', 'y', 'z'",
        "1 entries of gold.json have no question, such as 'c'",
    ]
