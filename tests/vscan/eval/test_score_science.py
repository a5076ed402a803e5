"""ScienceQA: the published way of reading a letter, over all questions and over those with a picture."""

import json
from pathlib import Path

import pytest

from vscan.eval.science import BENCHMARK, science_letter, score

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "llava_eval" / "scienceqa"
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
# (has a picture, right letter, what was said)
ROWS = [
    (True, "B", "B"),
    (True, "A", "A. the first"),
    (False, "C", "The answer is C."),
    (True, "A", "A."),  # not read
    (False, "B", "E"),  # a letter that is no option: read, and wrong
]
ALL = range(len(ROWS))


def write(folder, rows=None):
    entries = [
        {
            "id": str(number),
            **({"image": f"{number}/image.png"} if has_image else {}),
            "conversations": [
                {"from": "human", "value": "<image>\n" * has_image + f"Which? {number}\nA. x\nB. y\nC. z"},
                {"from": "gpt", "value": letter},
            ],
        }
        for number, (has_image, letter, _) in enumerate(rows or ROWS)
    ]
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(entries))
    return folder


def answers(folder, rows=ALL, suffix=SUFFIX):
    lines = [
        {
            "question_id": str(row),
            "prompt": "<image>\n" * ROWS[row][0] + f"Which? {row}\nA. x\nB. y\nC. z{suffix}",
            "text": ROWS[row][2],
        }
        for row in rows
    ]
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", None),
        ("B. it", "B"),
        ("The answer is D.", "D"),
        ("So: The answer is D, I think", "D"),  # the stop is a wildcard
        ("The answer is D", None),  # but something must stand there
        ("The answer is A. The answer is B.", None),
        ("The answer is Z.", "Z"),
        ("A.", None),
        ("(A)", None),
        ("A\nx", None),
        ("a", None),
        ("AB", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_published(text, letter):
    assert science_letter(text) == letter


@pytest.mark.parametrize("suffix", [SUFFIX, ""])
def test_accuracy_is_over_all_and_over_those_with_a_picture(tmp_path, suffix):
    scores = score(answers(write(tmp_path), suffix=suffix), tmp_path)
    assert scores.value == pytest.approx(100 * 2 / 3)
    assert scores.parts == {"IMG": pytest.approx(100 * 2 / 3), "total": 60.0, "questions with an image": 3}
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (5, 0, 1)


def test_a_missing_answer_stays_in_both_averages(tmp_path):
    scores = score(answers(write(tmp_path), rows=[4, 2, 1]), tmp_path)
    assert scores.parts == {"IMG": pytest.approx(100 / 3), "total": 40.0, "questions with an image": 3}
    assert (scores.num_missing, scores.num_unparsed) == (2, 0)


def test_wrong_answers_files_are_refused(tmp_path):
    write(tmp_path, [(False, "A", "A")] * 3)  # without the pictures that the answers are about
    with pytest.raises(ValueError, match="expected questions with an image, got none among 3"):
        score(answers(tmp_path, rows=[2]), tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="row 3: expected one answer a question"):
        score(answers(tmp_path, rows=[0, 1, 0]), tmp_path)
    file = answers(tmp_path, rows=[0])
    file.write_text(file.read_text().replace("Which?", "Why?"))
    with pytest.raises(ValueError, match="row 1: expected an answer to one of the questions"):
        score(file, tmp_path)


def test_a_question_without_its_letter_is_refused(tmp_path):
    write(tmp_path, [(True, "A", ""), (False, "Yes", "")])
    with pytest.raises(ValueError, match="entry 1: expected the right letter as its second turn, got 'Yes'"):
        BENCHMARK.check(tmp_path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published answers are not here")
def test_published_answers_have_the_published_score():
    scores = score(PUBLISHED / "answers" / "llava-v1.5-13b.jsonl", PUBLISHED)
    assert f"{scores.value:.2f}" == "71.64"
    assert f"{scores.parts['total']:.2f}" == "74.39"
    assert scores.parts["questions with an image"] == 2017
    assert (scores.num_questions, scores.num_missing, scores.num_unparsed) == (4241, 0, 5)
