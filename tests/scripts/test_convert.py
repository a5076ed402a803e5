"""The converters and scorers by LLaVA's names and flags: what they read, write and print."""

import json
from pathlib import Path

import eval_folders
import pytest
from openpyxl import load_workbook

from llava.eval import eval_pope, eval_science_qa, eval_textvqa
from llava.eval.layout import laid_out
from scripts import (
    convert_document_questions,
    convert_gqa_for_eval,
    convert_mmbench_for_submission,
    convert_mmvet_for_eval,
    convert_seed_for_submission,
    convert_vizwiz_for_submission,
    convert_vqav2_for_submission,
)

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "llava_eval"


@pytest.fixture(scope="module")
def published():
    """LLaVA's own question files and answers."""
    if not PUBLISHED.is_dir():
        pytest.skip("LLaVA's published answers are not here: llava_eval is expected in `shared` beside the project")
    return PUBLISHED


def answer(folder, name, texts, question_file, **keys):
    """An answers file as the loader writes it."""
    questions = [json.loads(line) for line in question_file.read_text().splitlines()]
    rows = [
        {"question_id": question["question_id"], "prompt": question["text"], "text": text, **keys}
        for question, text in zip(questions, texts, strict=True)
    ]
    eval_folders.write_rows(folder / name, rows)
    return folder / name


def run(module, **flags):
    module.main([word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))])


def test_vqav2_finds_answers_where_llavas_script_puts_them(tmp_path):
    split = "llava_vqav2_mscoco_test-dev2015"
    eval_folders.vqav2(tmp_path, ["?"] * 2)
    answer(tmp_path / "answers" / split / "llava-7b", "merge.jsonl", ["Two.", "a t-shirt"], tmp_path / f"{split}.jsonl")
    run(convert_vqav2_for_submission, dir=tmp_path, ckpt="llava-7b")
    written = json.loads((tmp_path / "answers_upload" / split / "llava-7b.json").read_text())
    assert [entry["answer"] for entry in written] == ["", "2", "t shirt"]


def test_vizwiz(tmp_path):
    eval_folders.vizwiz(tmp_path, ["?"] * 2)
    answers = answer(tmp_path, "a.jsonl", ["Unanswerable", "The 3."], tmp_path / "llava_test.jsonl")
    upload = tmp_path / "upload" / "a.json"
    run(
        convert_vizwiz_for_submission,
        annotation_file=tmp_path / "llava_test.jsonl",
        result_file=answers,
        result_upload_file=upload,
    )
    assert json.loads(upload.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "3"},
    ]


def test_mmbench_keeps_an_option_that_is_the_word_none(tmp_path):
    eval_folders.mmbench(tmp_path, ["A", "B"])
    rows = [{"question_id": 241 + row, "prompt": f"What is it {241 + row}?", "text": "B"} for row in range(2)]
    eval_folders.write_rows(tmp_path / "results" / "llava-7b.jsonl", rows)
    run(
        convert_mmbench_for_submission,
        annotation_file=tmp_path / "mmbench_dev_20230712.tsv",
        result_dir=tmp_path / "results",
        upload_dir=tmp_path / "upload",
        experiment="llava-7b",
    )
    header, first, _ = load_workbook(tmp_path / "upload" / "llava-7b.xlsx").active.values
    assert header[:8] == ("index", "question", "A", "B", "C", "D", "prediction", "answer")
    assert first[:8] == (241, "What is it 241?", "a cat", "None", "a dog", "a cow", "B", "A")


def test_gqa_drops_full_stops_and_nothing_else(tmp_path):
    eval_folders.gqa(tmp_path, ["?"] * 2)
    source = answer(tmp_path, "a.jsonl", ["Yes.", " The man"], tmp_path / "llava_gqa_testdev_balanced.jsonl")
    run(convert_gqa_for_eval, src=source, dst=tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text()) == [
        {"questionId": "20130", "prediction": "yes"},
        {"questionId": "20131", "prediction": " the man"},
    ]


def test_mm_vet(tmp_path):
    eval_folders.mm_vet(tmp_path, ["?"] * 2)
    source = answer(tmp_path, "a.jsonl", ["x is 3", "y"], tmp_path / "llava-mm-vet.jsonl")
    run(convert_mmvet_for_eval, src=source, dst=tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == {"v1_0": "x is 3", "v1_1": "y"}
    source.write_text(source.read_text() * 2)
    with pytest.raises(ValueError, match="expected one answer a question, got 4 answers to 2"):
        run(convert_mmvet_for_eval, src=source, dst=tmp_path / "results.json")


def test_seed_bench(tmp_path, capsys):
    eval_folders.seed_bench(tmp_path, ["A", "B", "A", "B"])
    answers = answer(tmp_path, "a.jsonl", ["A", "B.", "B", "B"], tmp_path / "llava-seed-bench.jsonl")
    run(
        convert_seed_for_submission,
        annotation_file=tmp_path / "SEED-Bench.json",
        result_file=answers,
        result_upload_file=tmp_path / "upload.jsonl",
    )
    assert (tmp_path / "upload.jsonl").read_text().splitlines()[1] == '{"question_id": "1", "prediction": "B."}'
    printed = capsys.readouterr().out
    assert "Scene: 50.00%\ntotal: 50.00%\nimage: 50.00%\nvideo: 50.00%\n" in printed


@pytest.mark.parametrize("name", ["docvqa", "infovqa"])
def test_questions_about_documents_are_written_beside_the_official_file(name, tmp_path, capsys):
    getattr(eval_folders, name)(tmp_path, [["1"], ["2", "two"]])
    convert_document_questions.main([name, "--data", str(tmp_path)])
    written = tmp_path / f"llava_{name}_val.jsonl"
    assert capsys.readouterr().out == f"{written}: written\n"
    first = [
        {"question_id": 49150, "image": "page_0.png", "text": "What is the ‘total’ in line 0?" + eval_folders.SHORT},
        {"question_id": 98310, "image": "20470.jpeg", "text": "How many are in part 0?" + eval_folders.SHORT},
    ][name == "infovqa"]
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert (rows[0], len(rows)) == ({**first, "category": "default"}, 2)


def test_questions_about_documents_need_the_official_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected val_v1.0_withQT.json or val_v1.0.json in .*, found none"):
        convert_document_questions.main(["docvqa", "--data", str(tmp_path)])


def test_eval_pope_takes_files_from_anywhere(tmp_path, capsys):
    eval_folders.pope(tmp_path / "pope", ["yes", "no"] * 3)
    answers = answer(tmp_path, "a.jsonl", ["yes", "Yes"] * 3, tmp_path / "pope" / "llava_pope_test.jsonl")
    (tmp_path / "pope" / "coco").rename(tmp_path / "labels")
    (tmp_path / "pope" / "llava_pope_test.jsonl").rename(tmp_path / "questions.jsonl")
    run(
        eval_pope,
        annotation_dir=tmp_path / "labels",
        question_file=tmp_path / "questions.jsonl",
        result_file=answers,
    )
    printed = capsys.readouterr().out
    assert printed.count("Category: ") == 3
    assert (
        "Category: random\nF1: 66.67\naccuracy: 50.00\nprecision: 50.00\nrecall: 100.00\nyes ratio: 100.00" in printed
    )
    assert printed.endswith("Mean F1: 66.67 (6 questions, 0 missing)\n")
    with pytest.raises(FileNotFoundError, match="expected a file or folder at '/none', found none"):
        run(eval_pope, annotation_dir="/none", question_file=tmp_path / "questions.jsonl", result_file=answers)


def test_eval_textvqa_leaves_out_what_lies_beside_answers(tmp_path, capsys):
    eval_folders.textvqa(tmp_path / "textvqa", [["red"] * 10] * 2)
    questions = tmp_path / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"
    for name in ("one.jsonl", "two.jsonl", "two.jsonl.stats.jsonl", "two.jsonl.skipped.jsonl"):
        answer(tmp_path / "results", name, ["Red", "blue"], questions)
    gold = tmp_path / "textvqa" / "TextVQA_0.5.1_val.json"
    gold = gold.rename(tmp_path / "gold.json")
    run(eval_textvqa, annotation_file=gold, result_dir=tmp_path / "results")
    expected = "one\nSamples: 2 (0 missing)\nAccuracy: 50.00%\n\n"
    assert capsys.readouterr().out == expected + expected.replace("one", "two")
    with pytest.raises(FileNotFoundError, match=r"expected answers files \(\*.jsonl\) in"):
        run(eval_textvqa, annotation_file=gold, result_dir=tmp_path / "textvqa" / "train_images")


def test_files_that_lie_in_the_layout_are_used_where_they_are(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "q.jsonl").touch()
    with laid_out({"coco": tmp_path / "coco", "q.jsonl": tmp_path / "q.jsonl"}) as folder:
        assert folder == tmp_path
    with laid_out({"coco": tmp_path / "coco", "other.jsonl": tmp_path / "q.jsonl"}) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["coco", "other.jsonl"]
    assert not folder.exists()


def test_the_published_numbers_of_llava_13b(published, tmp_path, capsys):
    name = "llava-v1.5-13b.jsonl"
    pope, science, vizwiz = (published / folder for folder in ("pope", "scienceqa", "vizwiz"))
    files = {"question_file": pope / "llava_pope_test.jsonl", "result_file": pope / "answers" / name}
    run(eval_pope, annotation_dir=pope / "coco", **files)
    assert capsys.readouterr().out.endswith("Mean F1: 85.95 (8910 questions, 0 missing)\n")

    files = {"output_file": tmp_path / "details.json", "output_result": tmp_path / "result.json"}
    run(eval_science_qa, base_dir=science, result_file=science / "answers" / name, **files)
    assert capsys.readouterr().out == "Total: 4241, Correct: 3155, Accuracy: 74.39%, IMG-Accuracy: 71.64%\n"

    files = {"result_file": vizwiz / "answers" / name, "result_upload_file": tmp_path / "upload.json"}
    run(convert_vizwiz_for_submission, annotation_file=vizwiz / "llava_test.jsonl", **files)
    uploaded = json.loads((vizwiz / "answers_upload" / "llava-v1.5-13b.json").read_text())
    assert json.loads((tmp_path / "upload.json").read_text()) == uploaded
    assert len(uploaded) == 8000
