"""RefCOCO's scorer: boxes out of any answer, mapped back, and two ways to count them."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.scenes.files import write_benchmark
from vscan.eval.refcoco import SPLITS, WHOLE_BOX, boxes, judge, published_iou, read_split, rescale, summarise
from vscan.eval.scoring import iou

ENTRY = {"image": "train2014/a.jpg", "problem": "?", "normal_caption": "the man in red"}
ENTRY |= {"solution": [10, 20, 110, 220], "normalized_solution": [0.1, 0.2, 0.3, 0.4], "width": 640, "height": 480}
QUESTION = {"question_id": 3, "image": "a.jpg", "text": "?", "solution": [0, 0, 100, 100], "width": 200, "height": 100}
SAME = (200, 100)

numbers = st.floats(-2000, 2000, allow_nan=False).map(lambda value: round(value, 3))
rectangles = st.tuples(numbers, numbers, st.floats(1, 500), st.floats(1, 500)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


# --------------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[10, 20, 30, 40]", [(10, 20, 30, 40)]),
        ("The box is [10,20,30,40].", [(10, 20, 30, 40)]),
        ('```json\n[\n\t{"bbox_2d": [221, 104, 338, 250], "label": "a 5"}\n]\n```', [(221, 104, 338, 250)]),
        ('```json\n{"bbox_2d": [\n 1.5,\n 2.,\n .75,\n -4\n]}\n```', [(1.5, 2, 0.75, -4)]),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6, 7, 8]}]', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cut o', [(1, 2, 3, 4)]),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4, 5]", []),
        ("(1, 2), (3, 4)", []),
        ("[a, b, c, d]", []),
        ("[1, 2, 3, " + "9" * 400 + "]", []),
        ("", []),
    ],
)
def test_boxes_are_found_in_order(text, found):
    assert boxes(text) == found


@given(st.lists(st.tuples(*[st.integers(-999, 9999)] * 4), max_size=4), st.booleans())
def test_boxes_that_json_writes_are_read_back(written, fenced):
    text = json.dumps([{"bbox_2d": list(box), "label": "[1, 2]"} for box in written], indent=fenced and 2)
    assert boxes(f"```json\n{text}\n```" if fenced else text) == written


@given(st.text(alphabet="[]0123456789,. -\n{}", max_size=60))
def test_any_text_gives_finite_boxes_and_whole_ones_are_among_them(text):
    found = boxes(text)
    assert all(len(box) == 4 and all(map(math.isfinite, box)) for box in found)
    assert set(boxes(text, WHOLE_BOX)) <= set(found)


# ---------------------------------------------------------------------------------------------------------- overlap


@given(rectangles, rectangles)
def test_published_overlap_is_the_usual_one_but_for_overlaps_of_a_pixel(one, other):
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    if min(sides) > 1.001:
        assert published_iou(one, other) == pytest.approx(iou(one, other), abs=1e-9)
    elif min(sides) < 0.999:
        assert published_iou(one, other) == 0


def test_published_overlap_has_its_traps():
    assert published_iou((5, 5, 6, 50), (5, 5, 6, 50)) == 0  # a pixel wide, and the same box
    assert published_iou((0.1, 0.1, 0.9, 0.9), (0.1, 0.1, 0.9, 0.9)) == 0  # normalised
    assert published_iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0  # there: a division by zero
    assert published_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1


@given(rectangles, st.integers(1, 50), st.integers(1, 50), st.integers(28, 3000), st.integers(28, 3000))
def test_boxes_are_mapped_back_by_the_grid_and_not_by_the_proportion(box, columns, rows, width, height):
    resized = (columns * 28, rows * 28)
    there = rescale(box, (width, height), resized)
    assert rescale(there, resized, (width, height)) == pytest.approx(box, abs=1e-6)
    assert there[0] / resized[0] == pytest.approx(box[0] / width)
    assert there[3] / resized[1] == pytest.approx(box[3] / height)


# ---------------------------------------------------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("text", "correct", "published"),
    [
        ("[0, 0, 100, 100]", True, True),
        ("[0, 0, 100, 50]", True, False),  # IoU of exactly a half
        ("[0, 0, 100, 49]", False, False),
        ("[0, 0, 100.0, 100]", True, False),  # the published pattern reads whole numbers
        ("[0, 0, 9, 9], [0, 0, 100, 100]", False, True),  # only the first box counts
        ("[0, 0, 100, 100], [0, 0, 9, 9]", True, True),
        ("[100, 100, 0, 0]", False, False),
        ("[0, 0, 1, 1]", False, False),
        ("no box", False, False),
    ],
)
def test_the_first_box_counts_and_the_published_counting_stands_beside(text, correct, published):
    row = judge(QUESTION, text, SAME)
    assert (row["correct"], row["published_correct"]) == (correct, published)
    assert (row["extracted_answer"] is None) == (text == "no box")
    assert row["model_output"] == text
    assert row["row"] == 3


def test_a_box_is_compared_in_the_pixels_of_the_picture():
    row = judge({**QUESTION, "solution": [50, 10, 150, 60]}, "[14, 56, 42, 336]", (56, 560))
    assert row["extracted_answer"] == [50, 10, 150, 60]
    assert row["iou"] == 1
    assert row["published_correct"]


def test_an_answer_that_is_missing_or_unparsable_is_wrong_and_counted():
    rows = [judge(QUESTION, text, SAME) for text in ("[0, 0, 100, 100]", "no box", "[0, 0, 100, 50]")]
    assert summarise(rows, 4) == {
        "questions": 4,
        "missing": 1,
        "unparsable": 1,
        "correct": 2,
        "published_correct": 1,
        "accuracy": 50.0,
        "published_accuracy": 25.0,
    }


# ---------------------------------------------------------------------------------------------------------- reading


def write(folder, content):
    (folder / "refcoco_val.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_split(folder, "refcoco_val")


@pytest.mark.parametrize(
    ("caption", "asked"),
    [
        ("the man in red", "man in red"),
        ("A the man", "the man"),
        ("an apple", "apple"),
        ("another apple", "another apple"),
        ("theatre", "theatre"),
        ("left", "left"),
    ],
)
def test_one_leading_article_is_dropped(tmp_path, caption, asked):
    (question,) = write(tmp_path, [{**ENTRY, "normal_caption": caption}])
    assert question["text"] == f"Locate {asked} in this image and output the bbox coordinates in JSON format."
    assert question["question_id"] == 0
    assert question["solution"] == [10, 20, 110, 220]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got "),
        ("{}", "expected a JSON list with entries, got "),
        ([], r"expected a JSON list with entries, got '\[\]'"),
        ([{"image": "a"}], r"entry 0: expected the keys \['height', 'normal_caption', 'solution', 'width'\]"),
        ([ENTRY, {**ENTRY, "solution": [1, 2, 3]}], r"entry 1: expected solution to be a box .* got \[1, 2, 3\]"),
        ([{**ENTRY, "solution": [9, 9, 3, 3]}], "entry 0: expected solution to be a box"),
        ([{**ENTRY, "width": 0}], "entry 0: expected width to be a number above 0, got 0"),
        ([{**ENTRY, "normal_caption": None}], "entry 0: expected normal_caption to be a string, got None"),
    ],
)
def test_a_file_that_is_no_split_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, content)


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="data root: expected the split refcocog_test, found none at"):
        read_split(tmp_path, "refcocog_test")
    assert len(SPLITS) == 8


def test_the_drawn_benchmark_is_read(tmp_path):
    write_benchmark(tmp_path, "test", 3)
    questions = read_split(tmp_path / "refcoco" / "rec_jsons_processed", "refcoco_val")
    assert len(questions) == 3
    for question in questions:
        perfect = judge(question, str(question["solution"]), (question["width"], question["height"]))
        assert perfect["iou"] == 1


@pytest.mark.parametrize("module", ["eval.refcoco", "eval.science", "eval.mmbench", "io.images", "io.checkpoint"])
def test_a_module_loads_without_torch(module):
    code = f"import sys, vscan.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
