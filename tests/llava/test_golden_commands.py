"""The published commands, word for word, against the answers files that they wrote (`golden/cli`)."""

import json
import shutil

import pytest

from llava.eval.model_vqa_loader import main

pytestmark = pytest.mark.usefixtures("weights_once")

WHOLE = ["llava/l4_32_t96", "llava/l4_32_t96_chunk3_0", "llava/l4_32_t96_chunk3_2"]
BEGUN = [f"llava/{name}" for name in ("l36_96_32_t192", "l4_16_t64", "vision_only_t96", "dense_none", "dense_empty")]
BEGUN += ["vp/t128_r050", "vp/t64_r075", "vp/t96_r100"]
# All questions are asked with the flags of the first; with the others' by default these, and all if slow ones run.
NUM_BEGUN = 2
SAME = {"llava/l4_16_t64", "llava/dense_empty", "vp/t64_r075"}  # as the one before or after, by other numbers
RUNS = [*((name, None) for name in WHOLE), *((name, NUM_BEGUN) for name in BEGUN if name not in SAME)]
RUNS += [pytest.param(name, None, marks=pytest.mark.slow) for name in (*BEGUN, "llava/l4_32_t96_chunk3_1")]


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "cli"


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    """The recorded checkpoint, its placeholder replaced by where the tower lies."""
    path = tmp_path_factory.mktemp("models") / "tiny-llava-v1.5"
    shutil.copytree(folder / "llava" / path.name, path)
    config = path / "config.json"
    config.write_text(config.read_text().replace("@CLIP_TOWER@", str(folder / "llava" / "clip_tower")))
    return path


def flags(folder, run, checkpoint, question_file, answers_file):
    """The recorded command's flags, with this machine's paths; VisPruner is one of our methods."""
    command = run["command"][3:]
    paths = {
        "--question-file": question_file,
        "--image-folder": folder / "images",
        "--model-path": checkpoint,
        "--answers-file": answers_file,
    }
    for flag, path in paths.items():
        command[command.index(flag) + 1] = str(path)
    return [*command, *(["--method", "vispruner"] if run["family"] == "vp" else []), "--device", "cpu"]


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(("name", "limit"), RUNS)
def test_a_published_command_writes_the_recorded_answers(folder, checkpoint, tmp_path, name, limit):
    run = next(
        run for run in json.loads((folder / "runs.json").read_text()) if f"{run['family']}/{run['name']}" == name
    )
    answers_file = tmp_path / "new folder" / "answers.jsonl"
    questions = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "questions.jsonl").write_text("".join(questions[:limit]))
    main(flags(folder, run, checkpoint, tmp_path / "questions.jsonl", answers_file))
    ours, recorded = read(answers_file), read(folder / run["answers"])[:limit]
    rows = json.loads((folder / run["rows"]).read_text())[run["rows_offset"] :][: run["count"]][:limit]
    assert len(ours) == len(recorded) == len(rows) == (limit or run["count"])
    for mine, theirs, row in zip(ours, recorded, rows, strict=True):
        assert list(mine) == list(theirs)
        assert {**mine, "text": "", "answer_id": ""} == {**theirs, "text": "", "answer_id": ""}
        if row["strict"]:
            assert mine["text"] == theirs["text"]
    stats = read(answers_file.with_name("answers.jsonl.stats.jsonl"))
    for mine, row in zip(stats, rows, strict=True):
        text = row["n_prompt_tokens"] - 1
        stages = [[0, row.get("n_visual_after_vision_stage", 576)]]
        stages += [[prune["layer"], prune["length_after"] - text] for prune in row.get("llm_prunes", [])]
        assert mine["stages"] == stages
