"""The folder: the real benchmarks' formats join, the loader runs on them, and what is there is whole."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval.model_vqa_loader import main as loader
from playground.scenes import files
from playground.scenes.__main__ import main
from playground.scenes.files import write_benchmark
from playground.tiny import build_checkpoint
from vscan.eval.questions import check_images, read_questions
from vscan.eval.scoring import check_answers

NUMBER = 24
QUESTION_FILES = {  # and the folders that their images are in
    "questions.jsonl": "images",
    "pope/llava_pope_test.jsonl": "pope/val2014",
    "gqa/llava_gqa_testdev_balanced.jsonl": "gqa/data/images",
    "textvqa/llava_textvqa_val_v051_ocr.jsonl": "textvqa/train_images",
    "refcoco/llava_refcoco_val.jsonl": "refcoco",
    "counting/questions.jsonl": "counting/images",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "test"
    write_benchmark(folder, "test", NUMBER)
    return folder


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def first_line(row):
    return row["text"].split("\n")[0]


def of_kind(data, *kinds):
    return [row for row in read(data / "questions.jsonl") if row["category"] in kinds]


def contents(folder):
    """All files below a folder, links not followed."""
    found = {}
    for place, _, names in os.walk(folder):
        found |= {os.path.relpath(f"{place}/{name}", folder): Path(place, name).read_bytes() for name in names}
    return found


@pytest.mark.parametrize("file", QUESTION_FILES)
def test_every_question_file_can_be_read_and_its_images_are_there(data, file):
    questions = read_questions(data / file)
    check_images(questions, data / QUESTION_FILES[file])
    assert {row["image"].split("/")[-1] for row in questions} == {f"{number:06d}.png" for number in range(NUMBER)}
    assert Image.open(data / QUESTION_FILES[file] / questions[0]["image"]).size == (96, 96)
    if file == "questions.jsonl":
        check_answers(questions)
    else:
        assert {tuple(row) for row in questions} == {("question_id", "image", "text", "category")}


def test_folders_of_images_are_relative_links(data, tmp_path):
    moved = tmp_path / "moved"
    data.rename(moved)
    try:
        check_images(read_questions(moved / "gqa/llava_gqa_testdev_balanced.jsonl"), moved / "gqa/data/images")
    finally:
        moved.rename(data)
    assert sum(path.endswith(".png") for path in contents(data)) == NUMBER


def test_pope_labels_join_by_row_order_within_a_category(data):
    questions = read(data / "pope/llava_pope_test.jsonl")
    assert len({row["question_id"] for row in questions}) == len(questions)
    assert list(dict.fromkeys(row["category"] for row in questions)) == ["adversarial", "random", "popular"]
    for category in ("adversarial", "random", "popular"):
        asked = [(row["image"], first_line(row)) for row in questions if row["category"] == category]
        labels = read(data / f"pope/coco/coco_pope_{category}.json")
        assert [(row["image"], row["text"]) for row in labels] == asked
        assert [row["label"] for row in labels] == ["yes", "no"] * (len(asked) // 2)
        assert len(asked) == 2 * NUMBER or category == "adversarial"
        assert len(asked) > 1.5 * NUMBER


def test_gqa_questions_have_their_gold_by_id(data):
    questions = read(data / "gqa/llava_gqa_testdev_balanced.jsonl")
    gold = json.loads((data / "gqa/data/testdev_balanced_questions.json").read_text())
    assert list(gold) == [row["question_id"] for row in questions]
    expected = {str(row["question_id"]): row for row in of_kind(data, "attribute", "relation")}
    assert list(gold) == list(expected)
    for row in questions:
        entry = gold[row["question_id"]]
        assert row["text"] == expected[row["question_id"]]["text"]
        assert entry["question"] == first_line(row)
        assert entry["answer"] == expected[row["question_id"]]["answer"]
        assert entry["imageId"] + ".png" == row["image"]
        assert entry["isBalanced"] is True
        is_open = entry["question"].startswith("What")
        assert entry["types"]["structural"] == ("query" if is_open else "choose")
        assert entry["types"]["semantic"] == ("attr" if is_open else "rel")
        assert entry["groups"]["global"] == (entry["question"].split()[1] if is_open else None)
        assert len(entry["semantic"]) == (2 if is_open else 3)


def test_textvqa_joins_on_image_and_question_and_gives_no_text_away(data):
    questions = read(data / "textvqa/llava_textvqa_val_v051_ocr.jsonl")
    gold = {
        (row["image_id"], row["question"].lower()): row["answers"]
        for row in json.loads((data / "textvqa/TextVQA_0.5.1_val.json").read_text())["data"]
    }
    expected = of_kind(data, "reading")
    assert len(gold) == len(questions) == len(expected) == NUMBER
    for row, own in zip(questions, expected, strict=True):
        lines = row["text"].split("\n")
        assert len(lines) == 2
        assert own["answer"] not in row["text"]
        assert row["text"] == own["text"]
        assert gold[row["question_id"], lines[0].lower()] == [own["answer"]] * 10


def test_refcoco_boxes_are_those_of_the_questions_in_pixels(data):
    boxes = json.loads((data / "refcoco/rec_jsons_processed/refcoco_val.json").read_text())
    questions, expected = read(data / "refcoco/llava_refcoco_val.jsonl"), of_kind(data, "box")
    for box, row, own in zip(boxes, questions, expected, strict=True):
        keys = ["image", "problem", "normal_caption", "solution", "normalized_solution", "width", "height"]
        assert list(box) == keys
        assert box["image"] == row["image"] == f"train2014/{own['image']}"
        assert box["problem"] == row["text"] == own["text"]
        assert own["text"].endswith(f": {box['normal_caption']}")
        assert (box["width"], box["height"]) == (96, 96)
        assert [round(pixels / 96, 2) for pixels in box["solution"]] == own["answer"]
        assert box["normalized_solution"] == pytest.approx([pixels / 96 for pixels in box["solution"]])


def test_counting_answers_join_by_id(data):
    questions, answers = read(data / "counting/questions.jsonl"), read(data / "counting/answers.jsonl")
    expected = of_kind(data, "counting")
    assert [(row["question_id"], row["text"]) for row in questions] == [(r["question_id"], r["text"]) for r in expected]
    assert answers == [{"question_id": row["question_id"], "answer": row["answer"]} for row in expected]


def test_the_loader_answers_the_drawn_pope(data, tmp_path):
    build_checkpoint(tmp_path / "tiny-llava")
    flags = {"--model-path": tmp_path / "tiny-llava", "--question-file": data / "pope/llava_pope_test.jsonl"}
    flags |= {"--image-folder": data / "pope/val2014", "--answers-file": tmp_path / "a.jsonl", "--device": "cpu"}
    flags |= {"--temperature": 0, "--max_new_tokens": 2, "--num-workers": 0, "--num-chunks": 48}
    loader([str(part) for pair in flags.items() for part in pair])
    rows = read(tmp_path / "a.jsonl")
    assert len(rows) in (2, 3)
    assert [row["prompt"] for row in rows] == [
        row["text"] for row in read(data / "pope/llava_pope_test.jsonl")[: len(rows)]
    ]


def test_blank_asks_the_same_about_grey_pictures(data, tmp_path):
    write_benchmark(tmp_path / "blank", "test", NUMBER, blank=True)
    drawn, blank = contents(data), contents(tmp_path / "blank")
    differ = {path for path in drawn | blank if drawn.get(path) != blank.get(path)}
    assert differ == {"arguments.json"} | {f"images/{number:06d}.png" for number in range(NUMBER)}
    pictures = [np.asarray(Image.open(tmp_path / "blank/images" / f"{number:06d}.png")) for number in range(NUMBER)]
    assert {picture.shape for picture in pictures} == {(96, 96, 3)}
    assert len({value for picture in pictures for value in np.unique(picture)}) == 1


def test_the_same_arguments_give_the_same_files_and_another_seed_gives_others(data, tmp_path):
    write_benchmark(tmp_path / "same", "test", NUMBER)
    assert contents(tmp_path / "same") == contents(data)
    write_benchmark(tmp_path / "other", "test", NUMBER, seed=1)
    same = set(contents(tmp_path / "other").items()) & set(contents(data).items())
    assert {path for path, _ in same} == {"counting/answers.jsonl"}, "the counts are balanced by the scene's number"


def test_what_was_interrupted_is_not_whole_and_is_finished_by_the_same_arguments(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for step in ("draw", "_write_pope", "_write_counting"):
        with monkeypatch.context() as patch:
            patch.setattr(files, step, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                write_benchmark(out, "test", NUMBER)
        assert not (out / "questions.jsonl").exists()
    with pytest.raises(FileExistsError, match="expected an empty folder or one begun with the same arguments"):
        write_benchmark(out, "test", NUMBER + 1)
    write_benchmark(out, "test", NUMBER)
    assert contents(out) == contents(data)


def test_a_whole_one_is_left_alone(tmp_path, monkeypatch):
    write_benchmark(tmp_path / "out", "test", 1)
    monkeypatch.setattr(files, "draw", lambda *_: 1 / 0)
    write_benchmark(tmp_path / "out", "test", 1)


def test_the_command_prints_a_table_of_answers_and_chance(tmp_path, capsys):
    main(["--split", "validation", "--number", "16", "--out", str(tmp_path), "--seed", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"existence +16 +50\.0% +50\.0%  no 8, yes 8", lines[1])
    assert re.fullmatch(r"attribute +16 +\d+\.\d% +14\.6%  \d+ different, each \d to \d times", lines[2])
    assert re.fullmatch(r"relation +16 +25\.0% +50\.0%  above 4, below 4, left 4, right 4", lines[3])
    assert re.fullmatch(r"counting +16 +25\.0% +25\.0%  0 4, 1 4, 2 4, 3 4", lines[4])
    assert [line.split()[0] for line in lines[5:]] == ["reading", "box"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--number", "0"], "argument --number: expected an int of at least 1, got '0'"),
        (["--number", "many"], "argument --number: expected an int of at least 1, got 'many'"),
        (["--split", "tests"], "argument --split: invalid choice: 'tests'"),
        (["--seed", "-1"], "argument --seed: expected an int of at least 0, got '-1'"),
    ],
)
def test_a_wrong_flag_is_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(["--split", "test", "--number", "1", "--out", str(tmp_path / "out"), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_refused_in_one_line(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    command = [sys.executable, "-m", "playground.scenes", "--split", "test", "--number", "1", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: expected an empty folder")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError, match="expected an empty folder"):
        write_benchmark(tmp_path / "thesis.tex", "test", 1)


@pytest.mark.parametrize(("split", "number"), [("tests", 1), ("test", 0)])
def test_the_python_interface_refuses_what_the_command_does(tmp_path, split, number):
    with pytest.raises(ValueError, match="expected one of train, validation, test and at least 1 scene"):
        write_benchmark(tmp_path / "out", split, number)
    assert not (tmp_path / "out").exists()
