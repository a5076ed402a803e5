"""The published command, word for word, against the answers files that it wrote (`golden/cli`)."""

import json
from itertools import product
from pathlib import Path

import pytest

from qwen.eval.model_vqa_loader import main


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# All questions of one command, the first ones of others; large pictures, all questions and both batch sizes are slow.
NAMES = ["dense", "r0167_l4_0333", "r06_l4_067", "large_r0167_l4_0333"]
CASES = [("r0167_l4_0333", "5", None), ("dense", "1", 2), ("r06_l4_067", "1", 2)]


@pytest.mark.parametrize(
    ("name", "batch_size", "limit"),
    [
        *CASES,
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product(NAMES, ["1", "5"], [None])
            if case not in CASES
        ),
    ],
)
def test_a_published_command_writes_the_recorded_answers(golden, tmp_path, name, batch_size, limit):
    folder, answers_file = golden / "cli", tmp_path / "new folder" / "answers.jsonl"
    runs = json.loads((folder / "runs.json").read_text())
    run = next(run for run in runs if (run["family"], run["name"]) == ("qwen", name))
    command = run["command"][3:]
    for flag in ("--question-file", "--image-folder", "--model-path"):
        place = command.index(flag) + 1
        command[place] = str(folder / command[place])
    place = command.index("--question-file") + 1
    questions = Path(command[place]).read_text().splitlines(keepends=True)
    command[place] = str(tmp_path / "questions.jsonl")
    Path(command[place]).write_text("".join(questions[:limit]))
    command[command.index("--answers-file") + 1] = str(answers_file)
    main([*command, "--device", "cpu", "--batch-size", batch_size])

    ours, recorded = read(answers_file), read(folder / run["answers"])[:limit]
    rows = json.loads((folder / run["rows"]).read_text())[run["rows_offset"] :][: run["count"]][:limit]
    assert len(ours) == len(recorded) == len(rows) == (limit or run["count"])
    for mine, theirs, row in zip(ours, recorded, rows, strict=True):
        assert list(mine) == list(theirs)
        assert {**mine, "text": "", "answer_id": ""} == {**theirs, "text": "", "answer_id": ""}
        if row["strict"]:
            assert mine["text"] == theirs["text"]
    for mine, row in zip(read(answers_file.with_name("answers.jsonl.stats.jsonl")), rows, strict=True):
        visual = row["image_grid_thw"][1] * row["image_grid_thw"][2] // 4
        text = row["n_prompt_tokens"] - visual
        stages = [[0, row["n_visual_after_vision_stage"]]]
        stages += [[prune["layer"], prune["length_after"] - text] for prune in row.get("llm_prunes", [])]
        assert (mine["visual_tokens"], mine["stages"]) == (visual, stages)
        assert mine["resized"] == [14 * row["image_grid_thw"][2], 14 * row["image_grid_thw"][1]]
