"""Files of all benchmarks with a row that is none: one line of a ValueError that names it, never a traceback."""

import codecs
import json
from pathlib import Path

import eval_folders
import pytest

from vscan.eval.benchmark import read_rows
from vscan.eval.benchmarks import BENCHMARKS
from vscan.eval.check import check_benchmark
from vscan.eval.gold import read_answers, read_json
from vscan.eval.mmbench import read_table
from vscan.eval.questions import read_questions
from vscan.eval.refcoco import read_split
from vscan.eval.science import read_science
from vscan.eval.video import read_predictions

DEEP = "[" * 100_000
RIGHT = {
    "gqa": ["yes"] * 4,
    "vqav2": ["red"] * 3,
    "science_qa": ["A"] * 4,
    "vizwiz": ["red"] * 2,
    "textvqa": [["red"] * 10] * 4,
    "pope": ["yes", "no"] * 3,
    "mme": ["Yes", "No"] * 2,
    "mmbench": ["A"] * 4,
    "mm_vet": ["red"] * 2,
    "seed_bench": ["A", "B"],
    "docvqa": [["1"], ["2"]],
    "infovqa": [["1"], ["2"]],
}
BY_WORDS = ("vqav2", "science_qa", "vizwiz", "textvqa", "pope", "mme", "mm_vet")  # ids alone do not tell a question


def built(name: str, folder: Path) -> Path:
    """A benchmark's folder."""
    getattr(eval_folders, name)(folder, RIGHT[name])
    return folder


def refused(call, *arguments) -> str:
    with pytest.raises(ValueError, match="expected ") as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(file: Path, change) -> None:
    """Change the content of a JSON file in place."""
    content = read_json(file)
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("prompt", [["a"], None, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_a_prompt_that_is_no_string_is_named(name, prompt, tmp_path):
    folder = built(name, tmp_path / name)
    eval_folders.write_rows(tmp_path / "a.jsonl", [{"question_id": 1, "prompt": prompt, "text": "A"}])
    message = refused(BENCHMARKS[name].score, tmp_path / "a.jsonl", folder)
    assert message.startswith(f"{tmp_path}/a.jsonl, line 1: expected prompt (str), got ")


@pytest.mark.parametrize("name", BY_WORDS)
def test_answers_without_the_prompt_that_joins_them_are_told_so(name, tmp_path):
    folder = built(name, tmp_path / name)
    eval_folders.write_rows(tmp_path / "a.jsonl", [{"question_id": 1, "text": "A"}])
    message = refused(BENCHMARKS[name].score, tmp_path / "a.jsonl", folder)
    assert message.startswith(f"{tmp_path}/a.jsonl, line 1: expected prompt (str), got none")


def test_a_prompt_of_a_videos_answer_that_is_no_string_is_named(tmp_path):
    eval_folders.write_rows(tmp_path / "a.jsonl", [{"id": 1, "question": [1], "pred": "x"}])
    assert "row 1: expected question (str), got [1]" in refused(read_predictions, tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"])
def test_empty_rows_of_question_files_are_named(name, tmp_path):
    folder = built("vqav2", tmp_path)
    (folder / name).write_text("{}\n")
    assert f"{name}, line 1: expected the keys" in refused(BENCHMARKS["vqav2"].check, folder)


@pytest.mark.parametrize("name", ["gqa", "seed_bench", "vqav2"])
def test_every_question_file_is_read_alike(name, tmp_path):
    folder = built(name, tmp_path)
    file = BENCHMARKS[name].files[0].find(folder)
    file.write_text('{"question_id": 1}\n')
    assert f"{file}, line 1: expected the keys ['text']" in refused(BENCHMARKS[name].check, folder)


@pytest.mark.parametrize("name", ["docvqa", "science_qa"])
def test_check_tells_an_image_that_is_no_name(name, tmp_path):
    folder = built(name, tmp_path)
    if name == "science_qa":
        changed(folder / "llava_test_CQM-A.json", lambda entries: entries[0].update(image=["a"]))
    else:
        eval_folders.write_rows(folder / "llava_docvqa_val.jsonl", [{"question_id": 1, "image": ["a"], "text": "?"}])
    problems = check_benchmark(BENCHMARKS[name], folder).problems
    assert any("expected image to be a string, got ['a']" in problem for problem in problems)


def _gqa(key, value):
    return "gqa", "testdev_balanced_questions.json", lambda content: content["20130"].update({key: value})


def _document(name, file, key, value):
    return name, file, lambda content: content["data"][0].update({key: value})


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        _gqa("types", {"structural": 3}),
        _gqa("types", {"semantic": ["a"]}),
        _gqa("groups", "color"),
        _gqa("groups", {"global": ["a"]}),
        _gqa("semantic", [3]),
        _gqa("semantic", [{"operation": "select"}]),
        ("seed_bench", "SEED-Bench.json", lambda content: content["question_type"].update(Scene=[1])),
        _document("docvqa", "val_v1.0_withQT.json", "question_types", 3),
        _document("docvqa", "val_v1.0_withQT.json", "question_types", [None]),
        _document("docvqa", "val_v1.0_withQT.json", "question_types", "form"),
        _document("infovqa", "infographicsVQA_val_v1.0.json", "answer_type", 3),
        _document("infovqa", "infographicsVQA_val_v1.0.json", "answer_type", "single span"),
        ("mm_vet", "mm-vet.json", lambda content: content["v1_0"].update(capability=[3])),
    ],
)
def test_gold_of_other_types_is_named(name, file, change, tmp_path):
    folder = built(name, tmp_path)
    changed(folder / file, change)
    (tmp_path / "a.jsonl").write_text("")
    message = refused(BENCHMARKS[name].score, tmp_path / "a.jsonl", folder)
    assert message.startswith(f"{folder / file}")
    assert "expected" in message


@pytest.mark.parametrize(
    ("name", "file", "entries"),
    [
        ("vqav2", "v2_mscoco_val2014_annotations.json", [{"question_id": 1, "answers": [{"answer": "a"}]}]),
        ("vizwiz", "val.json", [{"image": "a", "question": "?", "answers": [{"answer": "a"}]}]),
    ],
)
def test_a_type_of_answers_that_is_no_word_is_named(name, file, entries, tmp_path):
    folder = built(name, tmp_path)
    eval_folders.write_json(folder / file, [{**entries[0], "answer_type": ["other"]}])
    (tmp_path / "a.jsonl").write_text("")
    assert f"{file}, entry 0: expected answer_type" in refused(BENCHMARKS[name].score, tmp_path / "a.jsonl", folder)


def test_a_category_of_pope_that_is_no_name_is_told(tmp_path):
    folder = built("pope", tmp_path)
    file = folder / "llava_pope_test.jsonl"
    rows = read_rows(file)
    eval_folders.write_rows(file, [rows[0], {**rows[1], "category": ["random"]}, *rows[2:]])
    message = f"{file}, row 2: expected a category of random, popular, adversarial, got ['random']"
    assert refused(BENCHMARKS["pope"].check, folder) == message


@pytest.mark.parametrize("read", [read_rows, read_json, read_questions, read_science, read_answers])
def test_json_that_is_too_deep_is_no_json(read, tmp_path):
    (tmp_path / "a.json").write_text(DEEP)
    assert "expected " in refused(read, tmp_path / "a.json")


def test_a_split_that_is_too_deep_is_no_json(tmp_path):
    (tmp_path / "refcoco_val.json").write_text(DEEP)
    assert "expected JSON" in refused(read_split, tmp_path, "refcoco_val")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    file = tmp_path / "a"

    def write(content):
        file.write_bytes(codecs.BOM_UTF8 + content.encode())

    write('{"question_id": 1, "text": "é"}\n')
    for read in (read_rows, read_questions, read_answers):
        assert read(file) == [{"question_id": 1, "text": "é"}]
    write('{"a": 1}')
    assert read_json(file) == {"a": 1}
    write('[{"id": 1, "conversations": [{"value": "é"}]}]')
    assert read_science(file)[0]["text"] == "é"
    write("index\tquestion\n1\té\n")
    assert read_table(file, {"index"}) == [{"index": "1", "question": "é"}]


def test_blank_lines_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n\n{"question_id": 1}\n')
    assert "a.jsonl, line 3: expected question_id and text" in refused(read_answers, tmp_path / "a.jsonl")


def test_a_table_with_a_row_of_other_columns_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("index\tquestion\n1\tx\ty\n")
    assert "a.tsv, row 0: expected 2 cells, got 3" in refused(read_table, tmp_path / "a.tsv", {"index"})
