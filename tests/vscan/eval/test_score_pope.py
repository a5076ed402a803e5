"""POPE: the mean of three F1, with the published way of reading an answer, and only with the labels of its release."""

import json
from pathlib import Path

import pytest

from vscan.eval.pope import BENCHMARK, pope_is_yes, score

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "pope"
SUFFIX = "\nAnswer the question using a single word or phrase."
# (split, label, what was said): ids repeat in no file, but texts and images do.
ROWS = [
    ("adversarial", "yes", "Yes"),
    ("adversarial", "no", "Yes"),
    ("adversarial", "yes", "No"),
    ("random", "yes", "Yes."),
    ("random", "no", "No, there is none."),
    ("popular", "no", "NO"),  # read as yes
    ("popular", "yes", "Yes, there is not much"),  # read as no
]
ALL = range(len(ROWS))


def jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def folder(tmp_path):
    questions = [
        {
            "question_id": row,
            "image": f"{row // 2}.jpg",
            "text": f"Is there a cat in the image?{SUFFIX}",
            "category": split,
        }
        for row, (split, _, _) in enumerate(ROWS)
    ]
    jsonl(tmp_path / "llava_pope_test.jsonl", questions)
    for split in ("random", "popular", "adversarial"):
        labels = [
            {"question_id": 1, "image": f"{row // 2}.jpg", "text": "Is there a cat in the image?", "label": label}
            for row, (name, label, _) in enumerate(ROWS)
            if name == split
        ]
        jsonl(tmp_path / "coco" / f"coco_pope_{split}.json", labels)
    return tmp_path


def answers(folder, texts=None, rows=ALL):
    texts = texts or [said for _, _, said in ROWS]
    found = [
        {"question_id": row, "prompt": f"Is there a cat in the image?{SUFFIX}", "text": texts[row]} for row in rows
    ]
    return jsonl(folder / "answers" / "a.jsonl", found)


@pytest.mark.parametrize(
    ("text", "is_yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, it is not. Yes", False),
        ("There is not", False),
        ("Yes. No", True),
        ("NO", True),
        ("Nope", True),
        ("\nNo", True),
        ("no\n", True),
        ("Not sure", True),
        ("", True),
        ("Yes, there is not much", False),
    ],
)
def test_an_answer_is_read_as_published(text, is_yes):
    assert pope_is_yes(text) is is_yes


def test_the_score_is_the_mean_of_three_f1(folder):
    scores = score(answers(folder), folder)
    # adversarial: one hit, one false alarm, one miss; random: all right; popular: a false alarm and a miss.
    assert scores.parts["adversarial"] == pytest.approx(
        {"F1": 50, "accuracy": 100 / 3, "precision": 50, "recall": 50, "yes ratio": 200 / 3}
    )
    assert scores.parts["random"]["F1"] == 100
    assert scores.parts["popular"]["F1"] == 0
    assert scores.value == pytest.approx(50)
    assert scores.parts["mean accuracy"] == pytest.approx((100 / 3 + 100 + 0) / 3)
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (7, 0, 0)


def test_no_answer_is_the_wrong_answer_and_counted(folder):
    scores = score(answers(folder, rows=[1, 2, 5, 6]), folder)
    assert scores.num_missing == 3
    assert scores.parts["random"]["F1"] == 0  # one miss, one false alarm
    assert scores.parts["random"]["accuracy"] == 0
    assert scores.parts["random"]["yes ratio"] == 0  # of what was said: nothing
    assert scores.parts["adversarial"]["yes ratio"] == 50


def test_words_without_yes_and_no_are_counted(folder):
    scores = score(answers(folder, ["A cat", "", "No", "Yes", "No", "maybe, nothing", "yes"]), folder)
    assert scores.num_unparsed == 3
    assert scores.notes == ("3 answers have neither yes nor no; they count as yes, as published",)


def test_a_file_of_one_split_is_noted(folder):
    file = folder / "llava_pope_test.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if "adversarial" in line))
    numbers = [json.loads(line)["question_id"] for line in file.read_text().splitlines()]
    said = answers(folder, ["Yes"] * 7)
    said.write_text(
        "".join(line + "\n" for line in said.read_text().splitlines() if json.loads(line)["question_id"] in numbers)
    )
    assert score(said, folder).notes == ("only the split adversarial, of random, popular, adversarial",)


def test_nothing_found_is_no_division_by_zero(folder):
    scores = score(answers(folder, ["No"] * 7), folder)
    assert scores.value == 0
    assert scores.parts["random"]["precision"] == 0


def test_labels_of_another_release_are_told_by_their_number(folder):
    file = folder / "coco" / "coco_pope_random.json"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    with pytest.raises(
        ValueError, match=r"expected 2 labels for the 2 random questions, got 3: another release .*2,910"
    ):
        score(answers(folder), folder)


@pytest.mark.parametrize(("before", "after"), [("a cat in", "a cat imange in"), ("0.jpg", "9.jpg")])
def test_labels_of_other_words_are_refused(folder, before, after):
    file = folder / "coco" / "coco_pope_adversarial.json"
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=r"coco_pope_adversarial.json, row 1: expected the label of .* e3e3926"):
        score(answers(folder), folder)
    with pytest.raises(ValueError, match="row 1"):
        BENCHMARK.check(folder)


def test_answers_of_another_file_and_second_answers_are_refused(folder):
    other = jsonl(folder / "other.jsonl", [{"question_id": 0, "prompt": "Why?", "text": "No"}])
    with pytest.raises(ValueError, match=r"other.jsonl, row 1: expected an answer to one of the questions"):
        score(other, folder)
    with pytest.raises(ValueError, match=r"row 8: expected one answer a question, got another one"):
        score(answers(folder, rows=[*range(7), 0]), folder)


def test_other_categories_and_labels_are_refused(folder):
    file = folder / "coco" / "coco_pope_random.json"
    file.write_text(file.read_text().replace('"no"', '"maybe"'))
    with pytest.raises(ValueError, match="row 2: expected the label yes or no, got 'maybe'"):
        score(answers(folder), folder)
    file.write_text(file.read_text().replace('"maybe"', '"no"'))
    file = folder / "llava_pope_test.jsonl"
    file.write_text(file.read_text().replace("popular", "hard"))
    with pytest.raises(ValueError, match="expected a category of random, popular, adversarial, got 'hard'"):
        score(answers(folder), folder)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_published_answers_have_the_published_score(tmp_path):
    scores = score(PUBLISHED / "answers" / "llava-v1.5-13b.jsonl", PUBLISHED)
    assert f"{scores.value:.2f}" == "85.95"
    assert [f"{scores.parts[split]['F1']:.2f}" for split in ("random", "popular", "adversarial")] == [
        "87.14",
        "86.25",
        "84.46",
    ]
    assert f"{scores.parts['mean accuracy']:.2f}" == "86.98"
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (8910, 0, 0)
