"""A trial's copy of a benchmark's folder: fewer questions, the right answers to these alone, everything else linked."""

import json

import eval_folders
import pytest

from scripts import convert_document_questions
from scripts.first_rows import main
from vscan.eval.benchmarks import BENCHMARKS
from vscan.eval.mmbench import read_mmbench, rounds
from vscan.eval.science import read_science
from vscan.eval.video_questions import read_clips

FILES = {
    "gqa": "llava_gqa_testdev_balanced.jsonl",
    "textvqa": "llava_textvqa_val_v051_ocr.jsonl",
    "pope": "llava_pope_test.jsonl",
    "seed_bench": "llava-seed-bench.jsonl",
    "science_qa": "llava_test_CQM-A.json",
    "mmbench": "mmbench_dev_20230712.tsv",
    "mme": "llava_mme.jsonl",
    "docvqa": "llava_docvqa_val.jsonl",
    "infovqa": "llava_infovqa_val.jsonl",
    "msvd": "test_q.json",
}


def first(name, folder, rows, question_file=None):
    """The copy of a folder."""
    output = folder.parent / f"{folder.name}-{rows}"
    flags = ["--data", folder, "--question-file", question_file or FILES[name], "--rows", rows, "--output", output]
    main([name, *map(str, flags)])
    return output


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_gqa_and_its_right_answers(tmp_path):
    eval_folders.gqa(tmp_path / "gqa", ["a", "b", "c"])
    copy = first("gqa", tmp_path / "gqa", 2)
    whole = (tmp_path / "gqa" / FILES["gqa"]).read_text().splitlines(keepends=True)
    assert (copy / FILES["gqa"]).read_text() == "".join(whole[:2])
    gold = json.loads((copy / "testdev_balanced_questions.json").read_text())
    assert [entry["answer"] for entry in gold.values()] == ["a", "b"]
    assert (copy / "images").is_symlink()
    assert (copy / "images" / "n0.jpg").is_file()


def test_pope_and_as_many_labels_of_each_split(tmp_path):
    eval_folders.pope(tmp_path / "pope", ["yes", "no"] * 3)
    copy = first("pope", tmp_path / "pope", 3)
    assert len(lines(copy / FILES["pope"])) == 3
    numbers = {file.stem.rsplit("_")[-1]: len(lines(file)) for file in (copy / "coco").iterdir()}
    assert numbers == {"adversarial": 2, "random": 1, "popular": 0}


def test_textvqa_keeps_both_questions_about_an_image_apart(tmp_path):
    eval_folders.textvqa(tmp_path / "textvqa", [["x"] * 10] * 4)
    copy = first("textvqa", tmp_path / "textvqa", 3)
    data = json.loads((copy / "TextVQA_0.5.1_val.json").read_text())["data"]
    assert [entry["question_id"] for entry in data] == [100, 101, 102]


def test_seed_bench(tmp_path):
    eval_folders.seed_bench(tmp_path / "seed_bench", ["A", "B", "D"])
    content = json.loads((first("seed_bench", tmp_path / "seed_bench", 2) / "SEED-Bench.json").read_text())
    assert [entry["answer"] for entry in content["questions"]] == ["A", "B"]
    assert content["question_type"] == {"Scene": 1, "Action": 2}


def test_mmbench_brings_the_picture_that_a_copy_refers_to(tmp_path):
    eval_folders.mmbench(tmp_path / "mmbench", ["A"] * 6)
    table = tmp_path / "mmbench" / FILES["mmbench"]
    header, *rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join([header, *rows[::-1]]))  # copies come before what they refer to
    entries = read_mmbench(first("mmbench", tmp_path / "mmbench", 2) / FILES["mmbench"])
    assert entries == read_mmbench(table)[:2]
    assert entries[0]["options"][-1] == "None"


def test_lists_and_folders_without_answers_of_their_own(tmp_path):
    eval_folders.science_qa(tmp_path / "scienceqa", ["A", "B", "D"])
    assert len(json.loads((first("science_qa", tmp_path / "scienceqa", 2) / FILES["science_qa"]).read_text())) == 2
    eval_folders.mme(tmp_path / "MME", ["Yes"] * 4)
    copy = first("mme", tmp_path / "MME", 2)
    assert len(lines(copy / FILES["mme"])) == 2
    assert (copy / "MME_Benchmark_release_version" / "artwork" / "images" / "0000.jpg").is_file()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("gqa", ["a"] * 3),
        ("textvqa", [["a"] * 10] * 3),
        ("pope", ["yes"] * 3),
        ("seed_bench", ["A"] * 3),
        ("science_qa", ["A"] * 3),
        ("mme", ["Yes"] * 4),
        ("mmbench", ["A"] * 4),
        ("docvqa", [["A"]] * 3),
        ("infovqa", [["A"]] * 3),
        ("msvd", ["A"] * 3),
    ],
)
def test_the_score_of_a_copy_is_that_of_its_rows(name, right, tmp_path):
    getattr(eval_folders, name)(tmp_path / "whole", right)
    if name in ("docvqa", "infovqa"):
        convert_document_questions.main([name, "--data", str(tmp_path / "whole")])
    copy = first(name, tmp_path / "whole", 2)
    if name == "science_qa":
        questions = read_science(copy / FILES[name])
    elif name == "mmbench":
        questions = [question for entry in read_mmbench(copy / FILES[name]) for question in rounds(entry)]
    elif name == "msvd":
        questions = read_clips(copy / FILES[name], copy / "test_a.json")
        assert (copy / "videos").is_symlink()
    else:
        questions = lines(copy / FILES[name])
    rows = [{"question_id": row["question_id"], "prompt": row.get("prompt", row["text"])} for row in questions]
    eval_folders.write_rows(tmp_path / "a.jsonl", [{**row, "text": "A"} for row in rows])
    scores = BENCHMARKS[name].score(tmp_path / "a.jsonl", copy)
    assert (scores.num_questions, scores.num_missing) == (2, 0)


def test_every_split_of_refcoco(tmp_path):
    eval_folders.refcoco(tmp_path / "refcoco", [[0, 0, 9, 9]] * 3)
    copy = first("refcoco", tmp_path / "refcoco", 2, "rec_jsons_processed/refcoco_val.json")
    numbers = {len(json.loads(file.read_text())) for file in (copy / "rec_jsons_processed").iterdir()}
    assert (numbers, len(list((copy / "rec_jsons_processed").iterdir()))) == ({2}, 8)
    assert (copy / "images").is_symlink()


def test_a_second_trial_replaces_the_first_and_leaves_the_whole_alone(tmp_path):
    eval_folders.gqa(tmp_path / "gqa", ["a", "b", "c"])
    before = {file: file.read_bytes() for file in (tmp_path / "gqa").rglob("*") if file.is_file()}
    copy = first("gqa", tmp_path / "gqa", 2)
    assert first("gqa", tmp_path / "gqa", 2) == copy
    assert {file: file.read_bytes() for file in (tmp_path / "gqa").rglob("*") if file.is_file()} == before
    assert len(lines(first("gqa", tmp_path / "gqa", 99) / FILES["gqa"])) == 3


def test_right_answers_that_are_not_there_are_the_scorers_business(tmp_path):
    eval_folders.gqa(tmp_path / "gqa", ["a", "b"])
    (tmp_path / "gqa" / "testdev_balanced_questions.json").unlink()
    assert len(lines(first("gqa", tmp_path / "gqa", 1) / FILES["gqa"])) == 1


def test_a_question_file_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none at"):
        first("gqa", tmp_path / "gqa", 1)
    with pytest.raises(ValueError, match=r"question file: expected one that ends in .jsonl, .json, .tsv, got"):
        first("gqa", tmp_path / "gqa", 1, "questions.csv")
