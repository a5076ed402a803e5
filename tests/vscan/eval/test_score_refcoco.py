"""RefCOCO's scores out of what the command leaves: two countings, one-pixel boxes, boxes that are not in pixels."""

import pytest

from vscan.eval.gold import write_json, write_rows
from vscan.eval.refcoco import PROMPT
from vscan.eval.refcoco_scores import BENCHMARK, score

COUNTING = "published counting (any box of whole numbers, IoU > 0.5)"
# Caption, right box, what is said, size of the resized picture (half the 200 x 100 of the picture itself).
ROWS = (
    ("the dog", [0, 0, 100, 100], "[0, 0, 50, 50]", [100, 50]),  # right by both
    ("a cat", [0, 0, 100, 100], "[0, 0, 50, 25]", [100, 50]),  # one half: right, but not above
    ("man", [0, 0, 100, 100], "[60, 0, 90, 50] [0, 0, 50, 50]", [100, 50]),  # the second box: by the published only
    ("line", [10, 0, 11, 100], "[10, 0, 11, 100]", [200, 100]),  # one pixel wide: nothing in the published code
    ("hat", [0, 0, 100, 100], "[0.0, 0.0, 0.5, 1.0]", [100, 50]),  # relative: parsed, wrong and noted
    ("ball", [0, 0, 100, 100], "on the left", [100, 50]),  # no box
    ("cap", [0, 0, 100, 100], "[0.5, 0, 50, 50]", [100, 50]),  # no whole numbers: right, but not read there
    ("sky", [0, 0, 100, 100], None, None),  # not answered
)


def entry(caption, box):
    size = {"width": 200, "height": 100}
    return {"image": "train2014/a.jpg", "problem": "?", "normal_caption": caption, "solution": box, **size}


def write_split(folder, output, name, rows=ROWS):
    write_json(folder / "rec_jsons_processed" / f"{name}.json", [entry(caption, box) for caption, box, *_ in rows])
    answers, stats = [], []
    for number, (caption, _, text, size) in enumerate(rows):
        if text is not None:
            prompt = PROMPT.format(caption.removeprefix("the ").removeprefix("a "))
            answers.append({"question_id": number, "prompt": prompt, "text": text})
            stats.append({"row": number, "resized": size})
    write_rows(output / f"{name}.jsonl", answers)
    write_rows(output / f"{name}.jsonl.stats.jsonl", stats)


@pytest.fixture
def folder(tmp_path):
    write_split(tmp_path, tmp_path / "out", "refcoco_val")
    write_split(tmp_path, tmp_path / "out", "refcocog_test", ROWS[:2])
    return tmp_path


def test_one_split_is_counted_both_ways(folder):
    scores = score(folder / "out" / "refcoco_val.jsonl", folder)
    assert (scores.value, scores.num_questions, scores.num_missing, scores.num_unparsed) == (50, 8, 1, 1)
    assert scores.parts == {"refcoco_val": 50, COUNTING: {"refcoco_val": 25, "all": 25}}
    assert scores.notes[0] == "1 answers give a box of numbers from 0 to 1, while pixels were asked for."
    assert scores.notes[1].startswith("Without refcoco_testA, refcoco_testB, refcocop_val")


def test_the_output_folder_is_counted_split_by_split(folder):
    scores = score(folder / "out", folder)
    assert (scores.value, scores.num_questions, scores.num_missing) == (60, 10, 1)
    assert scores.parts["refcoco_val"] == 50
    assert scores.parts["refcocog_test"] == 100
    assert scores.parts[COUNTING] == {"refcoco_val": 25, "refcocog_test": 50, "all": 30}


def test_a_stopped_run_is_scored_with_what_is_missing(folder):
    file = folder / "out" / "refcoco_val.jsonl"
    file.write_text(file.read_text().split("\n", 1)[0] + "\n")
    scores = score(file, folder)
    assert (scores.value, scores.num_questions, scores.num_missing) == (12.5, 8, 7)


def test_boxes_in_order_of_nothing_are_wrong_and_parsed(folder):
    rows = [("dog", [0, 0, 100, 100], text, [200, 100]) for text in ("[100, 100, 0, 0]", "[0, 0, 0, 0]", "[1, 2, 3]")]
    write_split(folder, folder / "out", "refcoco_val", [*rows, ROWS[0]])
    scores = score(folder / "out" / "refcoco_val.jsonl", folder)
    assert (scores.value, scores.num_unparsed) == (25, 1)


def test_right_boxes_that_are_relative_are_refused(folder):
    write_split(folder, folder / "out", "refcoco_val", [("dog", [0.1, 0.2, 0.3, 0.4], "[1, 2, 3, 4]", [200, 100])])
    with pytest.raises(ValueError, match=r"expected solution in pixels, got numbers from 0 to 1, such as \[0.1, 0.2"):
        score(folder / "out", folder)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ([{"row": 0, "resized": [100, 50]}], "expected a row for each of the 2 answers, got 1"),
        (
            [{"row": 0, "resized": [100, 50]}, {}],
            "row 2: expected resized, the width and height of the resized picture",
        ),
        ([{"row": 0, "resized": [100, 0]}, {}], "row 1: expected resized"),
    ],
)
def test_an_answer_whose_size_is_lost_is_refused(folder, stats, message):
    write_rows(folder / "out" / "refcocog_test.jsonl.stats.jsonl", stats)
    with pytest.raises(ValueError, match=message):
        score(folder / "out", folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 0, "prompt": PROMPT.format("cat")}, "row 1: expected an answer to one of the questions"),
        ({"question_id": 1, "prompt": PROMPT.format("cat")}, "row 2: expected one answer a question"),
        ({"question_id": 9, "prompt": PROMPT.format("dog")}, "row 1: expected an answer to one of the questions"),
    ],
)
def test_answers_that_do_not_belong_are_refused(folder, row, message):
    good = {"question_id": 1, "prompt": PROMPT.format("cat"), "text": "[0, 0, 1, 1]"}
    write_rows(folder / "out" / "refcocog_test.jsonl", [{**row, "text": "[0, 0, 1, 1]"}, good])
    with pytest.raises(ValueError, match=message):
        score(folder / "out", folder)


def test_a_place_without_answers_is_refused(folder):
    for place in (folder, folder / "none", folder / "rec_jsons_processed" / "refcoco_val.json"):
        with pytest.raises(FileNotFoundError, match=r"expected one of refcoco_val.jsonl, .*, or a folder with them"):
            score(place, folder / "none")
    with pytest.raises(FileNotFoundError, match=r"expected refcoco_val.json or rec_jsons_processed/refcoco_val.json"):
        score(folder / "out", folder / "out")


def test_files_are_checked(folder):
    assert BENCHMARK.check(folder / "out") == ["expected at least one split, such as refcoco_val.json, found none"]
    (problem,) = BENCHMARK.check(folder)
    assert problem.endswith("expected the 1 images that the questions name, 1 are missing: train2014/a.jpg")
    (folder / "images" / "train2014").mkdir(parents=True)
    (folder / "images" / "train2014" / "a.jpg").touch()
    assert BENCHMARK.check(folder) == []
    assert sum(file.num_rows or 0 for file in BENCHMARK.files) == 57457
