"""Scripts that run to the end: a model of another depth than the published ones, a synthetic folder, a score."""

import importlib
import json

import eval_folders
import pytest
import tiny_qwen
import tiny_video
from script_helpers import ROOT, bash, dry, script_of

from vscan.eval.report import report

EMBEDDED = ROOT / "playground" / "models"
MODULES = {"vscan.eval": "vscan.eval.__main__", "scripts/first_rows.py": "scripts.first_rows"}


LAYERS = {
    "llava1_5": [0, 5],  # of 8, as the embedded model's config says
    "qwen2_5_vl": [0, 3],  # of 6
    "v1_5": [0],
}


@pytest.mark.parametrize(
    ("family", "by_bash"),
    [
        ("llava1_5", True),
        ("qwen2_5_vl", False),
        ("v1_5", False),
        pytest.param("qwen2_5_vl", True, marks=pytest.mark.slow),
        pytest.param("v1_5", True, marks=pytest.mark.slow),
    ],
)
def test_a_script_answers_and_scores_with_a_small_model(tmp_path, family, by_bash):
    """Bash runs the commands, each of which imports torch, or prints them, and they run here."""
    data, models, out = tmp_path / "my data", EMBEDDED, tmp_path / "out"
    eval_folders.pope(data / "pope", ["yes", "no"] * 3)
    if family == "qwen2_5_vl":
        models = tmp_path / "models"
        tiny_qwen.build_checkpoint(models / "tiny-llava")
    arguments = ["64", "0.75"] if family == "v1_5" else []
    places = {"DATA": data, "MODELS": models, "MODEL": "tiny-llava", "OUT": out, "LIMIT": 2, "OMP_NUM_THREADS": 1}
    if by_bash:
        done = bash(ROOT, script_of(family, "pope"), *arguments, **places, PYTHON="python")
        assert done.returncode == 0, done.stderr
    else:
        for words in dry(ROOT, family, "pope", *arguments, **places):
            assert words[0] == "python"
            module, *flags = words[2:] if words[1] == "-m" else words[1:]
            importlib.import_module(MODULES.get(module, module)).main(flags)
    (run,) = (out / family / "pope").iterdir()
    assert json.loads((run / "scores.json").read_text())["num_questions"] == 2
    rows = [json.loads(line) for line in (run / "answers.jsonl.stats.jsonl").read_text().splitlines()]
    assert [[layer for layer, _ in row["stages"]] for row in rows] == [LAYERS[family]] * 2


def test_a_script_asks_about_clips_and_scores_with_a_small_model(tmp_path):
    """One of four clips is missing, which is no error; a judge's file and proxies come out, and the paper's row."""
    folder = tmp_path / "data" / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA"
    eval_folders.msvd(folder, ["a"] * 8)
    for number in range(3):
        tiny_video.draw_clip(folder / "videos" / f"clip{number}.mp4", seed=number, number=8)
    (folder / "videos" / "clip3.mp4").unlink()
    tiny_video.build_checkpoint(tmp_path / "models" / "tiny")
    places = {"DATA": tmp_path / "data", "MODELS": tmp_path / "models", "MODEL": "tiny", "OUT": tmp_path / "out"}
    for variables in ({"BUDGET": "dense", "LIMIT": 2}, {"METHOD": "fastervlm", "BUDGET": "11.1"}):
        for words in dry(ROOT, "video_llava", "msvd", **places, **variables):
            module, *flags = words[2:] if words[1] == "-m" else words[1:]
            flags += ["--max_new_tokens", "2"] if module.endswith("video") else []
            importlib.import_module(MODULES.get(module, module)).main(flags)
    runs = tmp_path / "out" / "video_llava" / "msvd"
    scores = json.loads((runs / "tiny-fastervlm-11.1" / "scores.json").read_text())
    assert (scores["value"], scores["num_questions"], scores["num_missing"]) == (None, 8, 2)
    assert set(scores["proxies"]) == {"exact match (%)", "contains the answer (%)"}
    judge = (runs / "tiny-fastervlm-11.1" / "answers.judge.jsonl").read_text().splitlines()
    assert [list(json.loads(row)) for row in judge] == [["id", "question", "answer", "pred"]] * 6
    assert json.loads((runs / "tiny-dense-first2" / "scores.json").read_text())["num_questions"] == 2
    table = report([runs.parent], tmp_path)
    assert "MSVD-QA proxy: exact match" in table
    assert "| VScan (TMLR 01/2026), Table 5 |" in table
