"""GQA by a few rows that can be counted by hand: each kind of question, and each way to be wrong."""

import json

import pytest

from vscan.eval.gold import write_json, write_rows
from vscan.eval.gqa import BENCHMARK, prediction, score, write_submission

SUFFIX = "\nAnswer the question using a single word or phrase."


def entry(question, answer, structural, group=None, steps=("select: dog (1)", "verify color: red"), **more):
    operations = [dict(zip(("operation", "argument"), step.split(": "), strict=True)) for step in steps]
    types = {"structural": structural, "semantic": "attr", "detailed": f"{structural}Attr"}
    filled = {"question": question, "answer": answer, "isBalanced": True, "types": types, "groups": {"global": group}}
    return {**filled, "semantic": operations, **more}


GOLD = {
    "01": entry("Is it red?", "yes", "verify", "color"),
    "02": entry("Is it blue or red?", "red", "choose", "color", ("select: dog (1)", "choose name: x")),
    "03": entry("What is it?", "dog", "query", "animal", ("select: dog (1)", "query: name")),
    "04": entry("What is that?", "remote control", "query", None, ("select: this (2)",)),
    "05": entry("Is it far?", "no", "verify", "color"),
    "06": entry("Is it near?", "yes", "verify", isBalanced=False),
}
TEXTS = {"01": "Yes.", "02": "red..", "03": "a dog", "04": "Remote control. ", "06": "no"}


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "data" / "testdev_balanced_questions.json", GOLD)
    questions = [
        {"question_id": key, "image": "n1.jpg", "text": GOLD[key]["question"] + SUFFIX, "category": "default"}
        for key in GOLD
        if key != "06"
    ]
    write_rows(tmp_path / "llava_gqa_testdev_balanced.jsonl", questions)
    (tmp_path / "images").mkdir()
    return tmp_path


def write_answers(folder, texts):
    rows = [{"question_id": key, "prompt": GOLD[key]["question"] + SUFFIX, "text": text} for key, text in texts.items()]
    write_rows(folder / "answers.jsonl", rows)
    return folder / "answers.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"), [("Yes.", "yes"), ("yes...", "yes"), ("U.S.", "u.s"), (" yes", " yes"), ("yes. ", "yes. ")]
)
def test_full_stops_at_the_end_go_and_spaces_stay(text, expected):
    assert prediction(text) == expected


def test_every_kind_of_question_is_counted(folder):
    scores = score(write_answers(folder, TEXTS), folder)
    assert (scores.value, scores.num_questions, scores.num_missing, scores.num_unparsed) == (40, 5, 1, 0)
    distribution = scores.parts.pop("distribution")
    assert scores.parts == {
        "binary": pytest.approx(200 / 3),  # 01 and 02 of 01, 02 and 05, which has no answer
        "open": 0,
        "structural": {"choose": 100, "query": 0, "verify": 50},
        "semantic": {"attr": 40},
        "detailed": {"chooseAttr": 100, "queryAttr": 0, "verifyAttr": 50},
        "length": {"3": pytest.approx(100 / 4), "5": 100},
        "steps": {"1": pytest.approx(100 / 3), "2": 50},
    }
    # color: yes and red as often as they are true, no never (1); animal: dog never (1). By size: (1 * 3 + 1 * 1) / 4.
    assert distribution == pytest.approx(1 / 100)
    assert scores.notes == ()


def test_right_answers_are_all_right(folder):
    scores = score(write_answers(folder, {key: value["answer"] for key, value in GOLD.items()}), folder)
    assert (scores.value, scores.num_missing, scores.parts["distribution"]) == (100, 0, 0)


def test_an_empty_answer_is_wrong_and_counted(folder):
    scores = score(write_answers(folder, {**TEXTS, "01": " .", "02": ""}), folder)
    assert (scores.value, scores.num_missing, scores.num_unparsed) == (0, 1, 2)


def test_what_the_file_does_not_tell_is_left_out(folder):
    bare = {
        key: {**{name: value[name] for name in ("question", "answer", "isBalanced")}, "types": {"structural": "query"}}
        for key, value in GOLD.items()
    }
    write_json(folder / "testdev_balanced_questions.json", bare)  # beside data/, it comes first
    assert score(write_answers(folder, TEXTS), folder).parts == {
        "open": 40,
        "structural": {"query": 40},
        "length": {"3": 25, "5": 100},
    }


def test_the_submission_holds_every_answer(folder):
    file = write_answers(folder, {key: text for key, text in TEXTS.items() if key != "06"})
    assert write_submission(file, folder / "testdev_balanced_predictions.json") == 4
    assert json.loads((folder / "testdev_balanced_predictions.json").read_text()) == [
        {"questionId": "01", "prediction": "yes"},
        {"questionId": "02", "prediction": "red"},
        {"questionId": "03", "prediction": "a dog"},
        {"questionId": "04", "prediction": "remote control. "},
    ]
    file.write_text(file.read_text() * 2)
    with pytest.raises(ValueError, match="row 5: expected one answer a question, got another one to '01'"):
        write_submission(file, folder / "again.json")


@pytest.mark.parametrize("place", ["data/questions1.2", "questions1.2"])
def test_right_answers_may_lie_where_the_archive_has_them(folder, place):
    (folder / place).mkdir(parents=True)
    name = "testdev_balanced_questions.json"
    (folder / "data" / name).rename(folder / place / name)
    assert score(write_answers(folder, TEXTS), folder).value == 40


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": "77", "text": "yes"}, "row 6: expected an answer to one of the questions, got one to '77'"),
        ({"question_id": "01", "text": "yes"}, "row 6: expected one answer a question, got another one to '01'"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, row, message):
    file = write_answers(folder, TEXTS)
    with open(file, "a") as stream:
        stream.write(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        score(file, folder)


def test_answers_to_other_questions_of_the_same_ids_are_refused(folder):
    file = write_answers(folder, TEXTS)
    file.write_text(file.read_text().replace("Is it", "Was it").replace("What is", "What was"))
    with pytest.raises(ValueError, match="expected answers to the questions of this benchmark, got 5 of 5 to others"):
        score(file, folder)


def test_files_are_checked(folder):
    assert BENCHMARK.check(folder) == []
    assert [file.num_rows for file in BENCHMARK.files] == [12578, 12578, None]
    gold = folder / "data" / "testdev_balanced_questions.json"
    write_json(gold, {key: GOLD[key] for key in ("01", "02", "03", "04")})
    (problem,) = BENCHMARK.check(folder)
    assert problem == "1 questions have no entry in testdev_balanced_questions.json, such as '05'"
    write_json(gold, list(GOLD.values()))
    with pytest.raises(ValueError, match="expected an object from question ids to questions, got a list"):
        BENCHMARK.check(folder)
    write_json(gold, {"06": GOLD["06"]})
    with pytest.raises(ValueError, match="expected balanced questions, got none"):
        score(write_answers(folder, {"06": "no"}), folder)
    gold.unlink()
    with pytest.raises(FileNotFoundError, match=r"testdev_balanced_questions.json or data/testdev_balanced"):
        score(write_answers(folder, TEXTS), folder)
