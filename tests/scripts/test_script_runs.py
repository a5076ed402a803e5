"""Scripts that run to the end: a model of another depth than the published ones, a synthetic folder, a score."""

import json

import eval_folders
import pytest
import tiny_qwen
from script_helpers import ROOT, bash, run_here, script_of

EMBEDDED = ROOT / "playground" / "models"
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
def test_a_script_answers_and_scores_with_a_small_model(tmp_path, monkeypatch, family, by_bash):
    """Bash runs the commands, each of which imports torch, or prints them, and they run here."""
    data, models, out = tmp_path / "my data", EMBEDDED, tmp_path / "out"
    eval_folders.pope(data / "pope", ["yes", "no"] * 3)
    if family == "qwen2_5_vl":
        models = tmp_path / "models"
        tiny_qwen.build_checkpoint(models / "tiny-llava")
    arguments = ["64", "0.75"] if family == "v1_5" else []
    places = {"DATA": data, "MODELS": models, "MODEL": "tiny-llava", "OUT": out, "LIMIT": 2, "OMP_NUM_THREADS": 1}
    monkeypatch.chdir(ROOT)
    done = bash(ROOT, script_of(family, "pope"), *arguments, **places, PYTHON="python", DRY="" if by_bash else 1)
    assert done.returncode == 0, done.stderr
    if not by_bash:
        run_here(done.stdout)
    (run,) = (out / family / "pope").iterdir()
    assert json.loads((run / "scores.json").read_text())["num_questions"] == 2
    rows = [json.loads(line) for line in (run / "answers.jsonl.stats.jsonl").read_text().splitlines()]
    assert [[layer for layer, _ in row["stages"]] for row in rows] == [LAYERS[family]] * 2
