"""RefCOCO from its folder to the score: what a tiny Qwen2.5-VL answered, with boxes put where a box was asked for."""

import json

import eval_folders
import pytest
from tiny_qwen import build_checkpoint

from qwen.eval.test_refcoco import main
from vscan.eval.__main__ import main as evaluate

BOXES = [[10, 20, 110, 120], [30, 30, 90, 200]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    build_checkpoint(folder)
    return folder


def test_boxes_are_scored_in_the_pixels_of_the_picture(checkpoint, tmp_path):
    folder, run = tmp_path / "refcoco", tmp_path / "out"
    eval_folders.refcoco(folder, BOXES)
    flags = {
        "--model-path": checkpoint,
        "--data-root": folder / "rec_jsons_processed",
        "--image-root": folder / "images",
    }
    flags |= {"--output-dir": run, "--max_new_tokens": 2, "--num-workers": 0, "--device": "cpu", "--layer-list": "[3]"}
    splits = ["--datasets", "refcoco_val", "refcocog_test"]
    main([*(str(part) for pair in flags.items() for part in pair), *splits])
    for name, right in (("refcoco_val", [0]), ("refcocog_test", [0, 1])):
        write_boxes(run / f"{name}.jsonl", folder, right)
    evaluate(["refcoco", "--answers", str(run), "--data", str(folder), "--output", str(run / "scores.json")])
    scores = json.loads((run / "scores.json").read_text())
    assert scores["value"] == 75
    assert (scores["parts"]["refcoco_val"], scores["parts"]["refcocog_test"]) == (50, 100)
    assert (scores["num_questions"], scores["num_missing"], scores["num_unparsed"]) == (4, 0, 1)


def write_boxes(answers, folder, right):
    """Let the rows `right` say their box in the pixels of the resized picture, and the others none."""
    entries = json.loads((folder / "rec_jsons_processed" / "refcoco_val.json").read_text())
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    stats = [json.loads(line) for line in (answers.parent / f"{answers.name}.stats.jsonl").read_text().splitlines()]
    for row, (answer, cost) in enumerate(zip(rows, stats, strict=True)):
        size = (entries[row]["width"], entries[row]["height"])
        scales = [resized / side for resized, side in zip(cost["resized"], size, strict=True)] * 2
        box = [round(value * scale) for value, scale in zip(BOXES[row], scales, strict=True)]
        answer["text"] = json.dumps({"bbox_2d": box}) if row in right else "there"
    eval_folders.write_rows(answers, rows)
