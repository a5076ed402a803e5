"""Scripts that run to the end: a model of another depth than the published ones, a synthetic folder, a score."""

import json
import shlex
import sys

import eval_folders
import pytest
import tiny_qwen
import tiny_video
from script_helpers import FAMILIES, ROOT, bash, dry, run_here, script_of

from vscan.eval.report import report

EMBEDDED = ROOT / "playground" / "models"
LAYERS = {
    "llava1_5": [0, 5],  # of 8, as the embedded model's config says
    "qwen2_5_vl": [0, 3],  # of 6
    "v1_5": [0],
}
# Does what is no module, and notes down all that it is asked to do.
STUB = """#!/bin/sh
{python} -c 'import json, sys; print(json.dumps(sys.argv[1:]), file=open("{called}", "a"))' "$@"
case "$1" in -m) ;; *) exec {python} "$@" ;; esac
"""


@pytest.mark.parametrize("by_bash", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", LAYERS)
def test_a_script_answers_and_scores_with_a_small_model(tmp_path, monkeypatch, family, by_bash):
    """Bash prints the commands, and they run here, or runs them, each of which imports torch."""
    models, out = EMBEDDED, tmp_path / "out"
    if family == "qwen2_5_vl":
        models = tmp_path / "models"
        tiny_qwen.build_checkpoint(models / "tiny-llava")
    arguments, places = given(tmp_path, family, models)
    monkeypatch.chdir(ROOT)
    done = bash(ROOT, script_of(family, "pope"), *arguments, **places, PYTHON="python", DRY="" if by_bash else 1)
    assert done.returncode == 0, done.stderr
    if not by_bash:
        run_here(done.stdout)
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
            short = ["--max_new_tokens", "2"] if words[2].endswith("video") else []
            run_here(shlex.join([*words, *short]))
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


@pytest.mark.parametrize("family", ["llava1_5", "v1_5"])
def test_bash_runs_what_a_dry_run_prints(tmp_path, family):
    stub, called = tmp_path / "python", tmp_path / "called"
    stub.write_text(STUB.format(python=sys.executable, called=called))
    stub.chmod(0o755)
    arguments, places = given(tmp_path, family, EMBEDDED)
    printed = dry(ROOT, family, "pope", *arguments, **places, PYTHON=stub)
    called.unlink(missing_ok=True)
    done = bash(ROOT, script_of(family, "pope"), *arguments, **places, PYTHON=stub)
    assert done.returncode == 0, done.stderr
    ran = [json.loads(line) for line in called.read_text().splitlines()]
    ran = [words for words in ran if words[0] != "scripts/reduction_flags.py"]  # which says how to print the others
    assert [[str(stub), *words] for words in ran] == printed
    assert [words[0] for words in ran] == ["scripts/first_rows.py", "-m", "-m"]
    (copy,) = tmp_path.rglob("out/**/data")
    assert len((copy / "llava_pope_test.jsonl").read_text().splitlines()) == 2


def given(folder, family, models):
    """What a script is to be run with: its arguments and the environment, for two questions of a folder of six."""
    eval_folders.pope(folder / "my data" / "pope", ["yes", "no"] * 3)
    places = {"DATA": folder / "my data", "MODELS": models, "MODEL": "tiny-llava", "OUT": folder / "out"}
    return FAMILIES[family], {**places, "LIMIT": 2, "OMP_NUM_THREADS": 1}
