"""The comparison as a user meets it: the command from end to end, going on after a kill, and what can be wrong."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_qwen import build_checkpoint as build_qwen

from llava.eval.answering import load_checked
from playground.tiny import draw
from vscan.config import ReductionConfig
from vscan.eval.arguments import run_command
from vscan.eval.cells import Cell
from vscan.eval.questions import read_questions
from vscan.eval.table import SAME, WEIGHTS
from vscan.tools import compare as module
from vscan.tools.compare import compare, main, report

pytestmark = pytest.mark.usefixtures("weights_once")

NAMES = ["dense", "vscan-64", "vscan-32", "fastervlm-64", "fastervlm-32"]


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return small_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eleven questions on four pictures, in turn, of three categories."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    answers = {"existence": "yes", "count": ["2", "two"], "grounding": [0.1, 0.1, 0.6, 0.6]}
    questions = []
    for number in range(11):
        category = list(answers)[number % 3]
        draw(folder / "images" / f"{number % 4}.png", seed=number % 4)
        questions.append(
            {
                "question_id": number,
                "image": f"{number % 4}.png",
                "text": f"What about {category}, number {number}?\nAnswer the question using a single word or phrase.",
                "category": category,
                "answer": answers[category],
            }
        )
    write(folder / "questions.jsonl", questions)
    return folder


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def flags(checkpoint, data, *more):
    fixed = ["--model-path", checkpoint, "--data", data, "--methods", "vscan,fastervlm", "--tokens", "64,32"]
    return [str(part) for part in (*fixed, "--max-new-tokens", 4, "--device", "cpu", *more)]


@pytest.fixture(scope="module")
def whole(checkpoint, data, tmp_path_factory):
    """The folder of one uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    main(flags(checkpoint, data, "--output", folder))
    return folder


def texts(folder):
    return {name: [row["text"] for row in read(folder / f"{name}.jsonl")] for name in NAMES}


def test_the_command_writes_a_table_a_picture_and_the_answers(whole, data):
    *lines, blank, weights = (whole / "table.md").read_text().splitlines()
    assert (blank, weights) == ("", WEIGHTS)
    header, *table = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:]))
    assert header[1:5] == ["existence", "count", "grounding", "mean"]
    assert [row[0].replace(" ", "-") for row in table] == NAMES
    stages = ["0: 144", "0: 96, 4: 32", "0: 48, 4: 16", "0: 64", "0: 32"]
    assert [row[header.index("tokens per layer")] for row in table] == stages
    assert [row["tokens"] for row in csv.DictReader((whole / "table.csv").open())] == ["", "64", "32", "64", "32"]
    with Image.open(whole / "accuracy.png") as image:
        assert image.format == "PNG"
    for name in NAMES:
        assert [row["question_id"] for row in read(whole / f"{name}.jsonl")] == list(range(11))
    assert len({str(answers) for answers in texts(whole).values()}) > 1


def test_an_interrupted_run_recomputes_nothing_and_ends_in_the_same_table(checkpoint, data, whole, tmp_path, capsys):
    for file in whole.glob("*.jsonl*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    cut = tmp_path / "vscan-32.jsonl"  # killed while it wrote the ninth row; later cells had not begun
    lines = cut.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:8]) + lines[8][:30])
    for file in tmp_path.glob("fastervlm-*"):
        file.unlink()
    main(flags(checkpoint, data, "--output", tmp_path))
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.endswith("questions to answer")] == [
        "vscan 32: 3 of 11 questions to answer",
        "fastervlm 64: 11 of 11 questions to answer",
        "fastervlm 32: 11 of 11 questions to answer",
    ]
    assert cut.read_bytes().splitlines(keepends=True)[:8] == lines[:8]
    assert (tmp_path / "dense.jsonl").read_bytes() == (whole / "dense.jsonl").read_bytes()
    assert texts(tmp_path) == texts(whole)


def test_a_finished_run_loads_no_model_and_prints_the_same_table(checkpoint, data, whole, monkeypatch, capsys):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    monkeypatch.setattr("llava.eval.answering.load_checked", None)
    main(flags(checkpoint, data, "--output", whole))
    assert (whole / "table.md").read_text() in capsys.readouterr().out
    after = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert {name for name in before if before[name] != after[name]} <= {"accuracy.png"}


def test_without_an_output_folder_the_table_is_printed(checkpoint, data, whole, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["--question-file", data / "questions.jsonl", "--image-folder", data / "images"]
    given = flags(checkpoint, data, *files, "--limit", 4, "--methods", "random", "--tokens", "16")
    del given[given.index("--data") : given.index("--data") + 2]
    main(given)
    printed = capsys.readouterr().out
    assert "| random 16 |" in printed
    assert "lie in" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 16))])
def test_batches_change_no_answer_and_encode_an_image_once(checkpoint, data, whole, tmp_path, batch_size):
    loaded = load_checked(str(checkpoint), "cpu")
    tower = loaded[1].model.vision_tower.vision_tower
    seen = []
    tower.pre_layrnorm.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    questions = read_questions(data / "questions.jsonl")
    cells = [Cell("dense"), Cell("vscan", ReductionConfig("vscan", 96, {4: 32}), 64)]
    cells.append(Cell("random", ReductionConfig("random", 64), 64))
    common = {"model_id": "tiny", "max_new_tokens": 4, "batch_size": batch_size}
    rows = compare(lambda: loaded, cells, questions, data / "images", tmp_path, **common)
    assert {name: row.answers for name, row in zip(NAMES[:2], rows, strict=False)} == {
        name: texts(whole)[name] for name in NAMES[:2]
    }
    assert seen[0] == 1  # the call that warms up
    assert sum(seen[1:]) == 2 * 4  # pictures, for all questions of the dense cell and of all others
    stats = [json.loads(line) for line in (tmp_path / "random-64.jsonl.stats.jsonl").read_text().splitlines()]
    assert all(row["shared_seconds"] > 0 for row in stats)
    assert rows[2].seconds == pytest.approx(sum(row["seconds"] + row["shared_seconds"] for row in stats))


def test_a_cell_that_the_method_cannot_be_in_says_so_and_the_others_run(checkpoint, data, tmp_path, capsys):
    more = ["--methods", "pdrop,random", "--tokens", "40,16", "--limit", 4, "--max-new-tokens", 1]
    main(flags(checkpoint, data, *more, "--output", tmp_path))
    header, _, *table = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    )
    told = {row[0]: row[header.index("tokens per layer")] for row in table}
    assert list(told) == ["dense", "pdrop 40", "pdrop 16", "random 40", "random 16"]
    assert told["pdrop 16"] == "not reachable (at least 36)"  # two of eight layers are dense
    assert told["random 16"] == "0: 16"
    (line,) = (row for row in table if row[0] == "pdrop 16")
    assert [cell for cell in line if cell] == ["pdrop 16", "not reachable (at least 36)", "0"]  # boxes that lack
    rows = {(row["label"], row["tokens"]): row for row in csv.DictReader((tmp_path / "table.csv").open())}
    row = rows["pdrop", "16"]
    assert (row["questions"], row["mean"], row["tokens per layer"]) == ("0", "", "not reachable (at least 36)")
    assert not (tmp_path / "pdrop-16.jsonl").exists()


def test_a_qwen_answers_and_without_right_answers_it_is_compared_with_itself(data, tmp_path, capsys):
    build_qwen(tmp_path / "tiny-qwen")
    questions = read(data / "questions.jsonl")
    for question in questions:
        del question["answer"]
    write(tmp_path / "q.jsonl", questions)
    given = ["--model-path", tmp_path / "tiny-qwen", "--question-file", tmp_path / "q.jsonl", "--limit", 3]
    given += [
        "--image-folder",
        data / "images",
        "--methods",
        "vscan,random,fastv",
        "--tokens",
        "0.3",
        "--device",
        "cpu",
    ]
    main([str(part) for part in (*given, "--max-new-tokens", 3, "--output", tmp_path / "out")])
    assert f"\n{SAME}\n" in capsys.readouterr().out
    rows = {row["label"]: row for row in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    assert rows["dense"]["mean"] == "100.0"
    said = {name: [row["text"] for row in read(tmp_path / "out" / f"{name}.jsonl")] for name in ("dense", "random-0.3")}
    same = [ours == dense for ours, dense in zip(said["random-0.3"], said["dense"], strict=True)]
    assert float(rows["random"]["mean"]) == pytest.approx(100 * sum(same) / 3)
    # Means over pictures of several sizes, 0.45 of each, and a third of these from the middle of six layers on.
    assert {name: row["tokens per layer"] for name, row in rows.items()} == {
        "dense": "0: 196",
        "vscan": "0: 87.7, 3: 28.7",
        "random": "0: 58.3",
        "fastv": "not reachable (at least 0.333333)",
    }


def test_cells_of_any_kind_on_a_model_at_hand(checkpoint, data, tmp_path):
    loaded = load_checked(str(checkpoint), "cpu")
    questions = read_questions(data / "questions.jsonl")[:4]
    cells = [
        Cell("no merging", ReductionConfig("vscan", 96, {4: 32}, fields={"merge": False}), 64),
        Cell("dense"),
        Cell("a fifth", ReductionConfig("random", 0.2)),
    ]
    rows = compare(lambda: loaded, cells, questions, data / "images", tmp_path, "tiny", max_new_tokens=2)
    assert [row.stages for row in rows] == [[(0, 96.0), (4, 32.0)], [(0, 144.0)], [(0, 28.0)]]
    assert "| a fifth " in report(rows, questions, tmp_path)
    assert loaded[1].model.reduction is None


def test_a_reduction_that_does_not_fit_the_model_is_found_before_the_first_answer(checkpoint, data, tmp_path):
    loaded = load_checked(str(checkpoint), "cpu")
    questions = read_questions(data / "questions.jsonl")[:4]
    cells = [Cell("dense"), Cell("vscan", ReductionConfig("vscan", 96, fields={"local_layer": 7}), 96)]
    with pytest.raises(ValueError, match="expected a local layer below the global one"):
        compare(lambda: loaded, cells, questions, data / "images", tmp_path, "tiny")
    assert (tmp_path / "dense.jsonl").read_bytes() == b""


def error_of(monkeypatch, capsys, arguments) -> str:
    """Run the command with bad input; returns what it says."""
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(module.main)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "vscan,fast"], "fast at 64 tokens: method: expected one of vscan, vispruner, fastervlm, random"),
        (["--methods", "random", "--tokens", "64,600"], "random at 600 tokens: .*expected at most the 144.*, got 600"),
        (["--methods", "vscan", "--tokens", "100"], "vscan at 100 tokens: .*expected at most 144.*, got 150"),
        (["--methods", "vscan", "--tokens", "63"], "vscan at 63 tokens: average: expected an even count"),
        (["--methods", "random", "--tokens", "0"], "random at 0 tokens: .*expected a count of at least 1, got 0"),
        (["--tokens", "64;32"], "--tokens: expected counts such as '192,128,64', got '64;32'"),
        (["--tokens", "64,64"], "cells: expected different names, .*vscan-64.jsonl"),
        (["--conv-mode", "none"], "expected a conversation template"),
        (
            ["--image-folder", "there"],
            r"expected --data, or --question-file and --image-folder \(of clips .*\), and not both",
        ),
        (["--data", "nowhere"], "question file: expected a file, found none at 'nowhere/questions.jsonl'"),
        (["--model-path", "nowhere"], "model path 'nowhere': expected a checkpoint folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(
    checkpoint, data, tmp_path, monkeypatch, capsys, more, message
):
    monkeypatch.setattr("llava.eval.answering.load_checked", None)
    said = error_of(monkeypatch, capsys, flags(checkpoint, data, "--output", tmp_path, *more))
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert list(tmp_path.iterdir()) == []


def test_questions_without_answers_and_missing_images_are_named(checkpoint, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    questions = read(data / "questions.jsonl")
    write(tmp_path / "questions.jsonl", questions)
    assert "the 4 images that the questions name, 4 are missing" in error_of(
        monkeypatch, capsys, flags(checkpoint, tmp_path)
    )
    del questions[2]["answer"]
    write(tmp_path / "questions.jsonl", questions)
    assert error_of(monkeypatch, capsys, flags(checkpoint, tmp_path)) == (
        "error: question file, row 2, question 2: expected a key 'answer' to compare with, got none\n"
    )
    (tmp_path / "images").rmdir()
    write(tmp_path / "questions.jsonl", [{**question, "answer": "yes"} for question in questions])
    assert "image folder: expected a folder" in error_of(monkeypatch, capsys, flags(checkpoint, tmp_path))


def test_a_changed_configuration_is_refused(checkpoint, data, whole, monkeypatch, capsys):
    before = (whole / "dense.jsonl").read_bytes()
    arguments = flags(checkpoint, data, "--output", whole, "--max-new-tokens", "5")
    said = error_of(monkeypatch, capsys, arguments)
    assert "11 rows of another run (max_new_tokens: 4, now 5)" in said
    said = error_of(monkeypatch, capsys, flags(checkpoint, data, "--output", whole, "--limit", "3"))
    assert "rows of another run (questions: {'number': 11" in said
    assert (whole / "dense.jsonl").read_bytes() == before
