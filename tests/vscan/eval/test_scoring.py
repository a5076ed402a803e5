"""Words that are the same words, boxes that overlap enough, and text that is neither."""

import random
import subprocess
import sys

import pytest

from vscan.eval.scoring import Score, check_answers, iou, parse_box, score


@pytest.mark.parametrize(
    ("text", "answer", "correct"),
    [
        ("Yes", "yes", True),
        ("  YES. ", "yes", True),
        ("yes..", "yes", False),
        ("yes, it is", "yes", False),
        ("no", "yes", False),
        ("", "yes", False),
        ("Two.", ["2", "two"], True),
        ("2", ["2", "two"], True),
        ("three", ["2", "two"], False),
        ("St. Paul", "st. paul.", True),
        ("", "", True),
    ],
)
def test_words_are_compared_without_case_spaces_and_one_full_stop(text, answer, correct):
    assert score(text, answer) == Score(correct)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.25, 0.50, 0.33, 0.67]", (0.25, 0.5, 0.33, 0.67)),
        ("It is at [0,0,1,1.].", (0, 0, 1, 1)),
        ("[ .1 ,0.2,  -0.3,4 ]", (0.1, 0.2, -0.3, 4)),
        ("[1, 2] [0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("", None),
        ("yes", None),
        ("0.25, 0.50, 0.33, 0.67", None),
        ("[0.25, 0.50, 0.33]", None),
        ("[0.25, 0.50, 0.33, 0.67, 0.9]", None),
        ("[0.25, 0.50, 0.33, 0.67", None),
        ("[0.25, 0.50, 0.33, .]", None),
        ("[0.25 0.50 0.33 0.67]", None),
        ("[a, 0.50, 0.33, 0.67]", None),
        ("[nan, 0, inf, 1e3]", None),
        (f"[0, 0, {'9' * 400}, 1]", None),
    ],
)
def test_a_box_is_read_from_text_or_it_is_none(text, box):
    assert parse_box(text) == box
    assert score(text, [0.1, 0.1, 0.2, 0.2]).parsed == (box is not None)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
        ((0, 0, 1, 1), (0, 0, 1, 0.5), 1 / 2),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0),
        ((1, 1, 0, 0), (0, 0, 1, 1), 0),
        ((0.5, 0, 0.5, 1), (0, 0, 1, 1), 0),
    ],
)
def test_iou_of_boxes_that_can_be_reckoned_by_hand(one, other, expected):
    assert iou(one, other) == pytest.approx(expected)
    assert iou(other, one) == pytest.approx(expected)


def test_iou_is_the_share_of_pixels_on_a_raster():
    chance = random.Random(0)
    for _ in range(200):
        one, other = (
            [*(low[i] for i in (0, 1)), *(low[i] + chance.randrange(1, 9) for i in (0, 1))]
            for low in ((chance.randrange(9), chance.randrange(9)) for _ in range(2))
        )
        pixels = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (one, other)]
        assert iou(one, other) == pytest.approx(len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1]))


def test_a_box_is_right_from_one_half_on():
    assert score("[0, 0, 1, 0.5]", [0, 0, 1, 1]) == Score(True)
    assert score("[0, 0, 1, 0.49]", [0, 0, 1, 1]) == Score(False)
    assert score("the left one", [0, 0, 1, 1]) == Score(False, parsed=False)
    assert score("[1, 1, 0, 0]", [0, 0, 1, 1]) == Score(False)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "row 1, question 7: expected a key 'answer' to compare with, got none"),
        ({"answer": None}, "expected answer to be a string, some strings or a box .*, got None"),
        ({"answer": []}, r"got \[\]"),
        ({"answer": 3}, "got 3"),
        ({"answer": [0, 0, 1]}, r"got \[0, 0, 1\]"),
        ({"answer": ["yes", 1]}, r"got \['yes', 1\]"),
        ({"answer": [True, 0, 1, 1]}, r"got \[True"),
        ({"answer": [0.5, 0, 0.5, 1]}, "expected a box .* with x1 < x2 and y1 < y2"),
        ({"answer": "yes", "category": 3}, "expected category to be a string, got 3"),
    ],
)
def test_a_question_that_cannot_be_scored_is_named(question, message):
    good = {"question_id": 6, "text": "?", "answer": "yes"}
    check_answers([good, {**good, "answer": ["a", "b", "c", "d"]}, {**good, "answer": [0, 0, 1, 0.5]}])
    with pytest.raises(ValueError, match=message):
        check_answers([good, {"question_id": 7, "text": "?", **question}])


def test_no_questions_at_all_are_refused():
    with pytest.raises(ValueError, match="expected questions, got none"):
        check_answers([])


def test_scoring_needs_no_torch():
    code = "import sys, vscan.eval.scoring, vscan.eval.table, vscan.tools.compare; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
