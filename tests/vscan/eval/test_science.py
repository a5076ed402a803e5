"""ScienceQA's questions become prompts: those that published answers hold."""

import json
from pathlib import Path

import pytest

from vscan.eval.science import read_science, science_row

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "scienceqa"
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def entry(value="<image>\nWhy?\nA. x", **more):
    return {"id": "5", "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A"}], **more}


def write(folder, content):
    file = folder / "questions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_prompts_are_the_published_ones():
    questions = read_science(PUBLISHED / "llava_test_CQM-A.json", single_pred_prompt=True)
    answers = (PUBLISHED / "answers" / "llava-v1.5-13b.jsonl").read_text().splitlines()
    assert len(questions) == len(answers) == 4241
    for question, line in zip(questions, answers, strict=True):
        published = json.loads(line)
        ours = science_row(question, published["text"], published["model_id"])
        assert list(ours) == list(published)
        assert {**ours, "answer_id": ""} == {**published, "answer_id": ""}
        assert ("image" in question) == published["prompt"].startswith("<image>\n")


def test_the_letter_is_asked_for_where_that_is_wanted(tmp_path):
    file = write(tmp_path, [entry(image="5/image.png"), entry("Why?\nA. x")])
    plain, letter = read_science(file), read_science(file, single_pred_prompt=True)
    assert plain[0] == {
        "question_id": "5",
        "text": "Why?\nA. x",
        "prompt": "<image>\nWhy?\nA. x",
        "image": "5/image.png",
    }
    assert plain[1] == {"question_id": "5", "text": "Why?\nA. x", "prompt": "Why?\nA. x"}
    assert [question["prompt"] for question in letter] == [question["prompt"] + SUFFIX for question in plain]
    assert [question["text"] for question in letter] == [question["text"] + SUFFIX for question in plain]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "questions.json: expected JSON, got "),
        ("{}", "questions.json: expected a JSON list, got dict"),
        ([entry(), {"id": "6"}], r"entry 1: expected an object with id and conversations\[0\].value, got "),
        ([entry(value=None)], "entry 0: expected an object with id"),
        ([entry(image=5)], "entry 0: expected image to be a string, got 5"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_science(write(tmp_path, content))
    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none"):
        read_science(tmp_path / "none.json")
