"""--average and --preset in place of budgets, on the commands of every family."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval import command as llava_command
from llava.eval.model_vqa_loader import main
from playground.tiny import draw
from qwen.eval import command as qwen_command
from qwen.eval.arguments import reduction_config as qwen_config
from qwen.eval.test_refcoco import make_parser
from vscan.config import ReductionConfig
from vscan.eval.arguments import parse, reduction_config

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ["--model-path", "m", "--question-file", "q", "--answers-file", "a", "--image-folder", "i"]


def llava(*flags):
    return reduction_config(*parse(llava_command.question_parser("model_vqa_loader", 128), [*NEEDED, *flags]))


def qwen(*flags):
    return qwen_config(*parse(qwen_command.question_parser("model_vqa_loader", 128), [*NEEDED, *flags]))


@pytest.mark.parametrize("config", [llava, qwen])
def test_an_average_a_preset_or_nothing(config):
    assert config() is None
    assert config("--average", "0.111") == ReductionConfig("vscan", average=0.111)
    more = ["--method", "fastv", "--layer", "3", "--positions", "compact"]
    asked = config("--average", "64", *more)
    assert (asked.method, asked.average, asked.positions, asked.fields) == ("fastv", 64, "compact", {"layer": 3})
    assert config("--preset", "published", "--method", "pdrop") == ReductionConfig("pdrop", preset="published")


@pytest.mark.parametrize(
    ("config", "flags", "got"),
    [
        (llava, ["--average", "64", "--preset", "published"], "--average and --preset"),
        (llava, ["--average", "64", "--visual_token_num", "9"], "--average and --visual_token_num"),
        (llava, ["--preset", "p", "--layer-list", "[2]"], "--preset and --layer_list"),
        (qwen, ["--average", "0.1", "--image-token-ratio", "1"], "--average and --image-token-ratio"),
        (qwen, ["--preset", "p", "--layer_list", "[]"], "--preset and --layer_list"),
    ],
)
def test_more_than_one_way_to_say_it_is_refused(config, flags, got):
    with pytest.raises(ValueError, match=f"^expected one of --average, --preset, or budgets, got {got}$"):
        config(*flags)


def test_an_average_replaces_the_published_defaults_of_a_command():
    needed = ["--model-path", "m", "--data-root", "d", "--image-root", "i"]
    assert qwen_config(*parse(make_parser(), needed)) == ReductionConfig("vscan", 0.6, {14: 0.67})
    asked = qwen_config(*parse(make_parser(), [*needed, "--average", "0.25"]))
    assert asked == ReductionConfig("vscan", average=0.25)


def test_a_wrong_average_ends_in_one_line_before_torch():
    code = "import sys\nfrom vscan.eval.guard import run_command\nfrom llava.eval.model_vqa_loader import main"
    code += "\ntry: run_command(main)\nfinally: print('torch' in sys.modules)"
    for flags in (["--average", "0"], ["--average", "64", "--visual_token_num", "9"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *NEEDED, *flags], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert (done.returncode, done.stdout) == (2, "False\n")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_command_with_an_average_answers_as_with_the_budgets_it_stands_for(checkpoint, tmp_path, monkeypatch):
    draw(tmp_path / "a.png", seed=0)
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 0, "image": "a.png", "text": "What is it?"}) + "\n")

    def run(name, *flags):
        given = ["--model-path", checkpoint, "--question-file", tmp_path / "q.jsonl", "--image-folder", tmp_path]
        given += ["--answers-file", tmp_path / name, "--max_new_tokens", "3", "--device", "cpu", "--num-workers", "0"]
        main([str(flag) for flag in (*given, "--temperature", "0", *flags)])
        answer = json.loads((tmp_path / name).read_text())
        record = json.loads((tmp_path / f"{name}.run.json").read_text())
        return answer["text"], record, json.loads((tmp_path / f"{name}.stats.jsonl").read_text())["stages"]

    lists = ["--visual_token_num", "96", "--layer_list", "[4]", "--image_token_list", "[32]"]
    text, record, stages = run("average.jsonl", "--average", "64")
    assert stages == [[0, 96], [4, 32]]
    assert run("lists.jsonl", *lists) == (text, record, stages)
    monkeypatch.setattr("llava.eval.answering.load_checked", None)
    with pytest.raises(ValueError, match=r"^average: not reachable \(at least 144\)$"):
        run("none.jsonl", "--average", "64", "--method", "fastv")
