"""The flags of a budget belong to the checkpoint: its number of layers, and the layer before which it prunes."""

import json
import subprocess
import sys

import pytest
from script_helpers import ROOT, dry

from scripts.reduction_flags import ENCODERS, SHARES, STAGES, TOKENS, flags
from vscan.config import ReductionConfig
from vscan.eval.arguments import parse_list
from vscan.flops import average_tokens, tokens_per_layer
from vscan.methods import METHODS


@pytest.fixture
def model(tmp_path):
    """Make a checkpoint's folder with this config."""

    def make(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def values(words):
    """Of the flags, their values by name, in one spelling."""
    return dict(zip([word.replace("-", "_") for word in words[::2]], words[1::2], strict=True))


@pytest.mark.parametrize(
    ("family", "budget", "expected"),
    [
        ("llava1_5", "11.1", "--layer_list [16] --image_token_list [32] --visual_token_num 96"),
        ("llava1_6", "22.2", "--layer_list [16] --image_token_list [64] --visual_token_num 192"),
        ("llava1_5", "33.3", "--layer_list [16] --image_token_list [96] --visual_token_num 288"),
        ("video_llava", "25", "--layer_list [16] --image_token_list [32] --visual_token_num 96"),
        ("video_llava", "11.1", "--layer_list [16] --image_token_list [14] --visual_token_num 42"),
        ("qwen2_5_vl", "11.1", "--layer-list [14] --image-token-ratio-list [0.333] --image-token-ratio 0.167"),
        ("qwen2_5_vl", "22.2", "--layer-list [14] --image-token-ratio-list [0.333] --image-token-ratio 0.333"),
        ("qwen2_5_vl", "33.3", "--layer-list [14] --image-token-ratio-list [0.333] --image-token-ratio 0.5"),
        ("qwen2_5_vl", "50", "--layer-list [14] --image-token-ratio-list [0.67] --image-token-ratio 0.6"),
    ],
)
def test_the_published_numbers_come_out_with_and_without_a_config(model, tmp_path, family, budget, expected):
    assert " ".join(flags(family, "vscan", budget, tmp_path / "none")) == expected
    checkpoint = model(num_hidden_layers=28 if family == "qwen2_5_vl" else 32)
    assert " ".join(flags(family, "vscan", budget, checkpoint)) == expected


@pytest.mark.parametrize(
    ("config", "layer", "expected"),
    [
        ({"num_hidden_layers": 40}, "", 20),
        ({"num_hidden_layers": 40}, "16", 16),
        ({"text_config": {"num_hidden_layers": 64}}, "", 32),
        ({"num_hidden_layers": 27}, "", 13),
        ({"num_hidden_layers": 8, "reduction": {"vscan": {"prune_layer": 5}}}, "", 5),
        ({"num_hidden_layers": 8, "reduction": {"vscan": {"prune_layer": 5}}}, "2", 2),
        ({}, "", 16),  # transformers leaves out what is the default
    ],
)
def test_the_average_is_met_at_the_layer_of_any_checkpoint(model, config, layer, expected):
    checkpoint = model(**config)
    num_layers = config.get("text_config", config).get("num_hidden_layers", 32)
    for budget, average in TOKENS.items():
        given = values(flags("llava1_5", "vscan", budget, checkpoint, layer))
        assert parse_list(given["__layer_list"], "") == [expected]
        stages = tuple(zip([expected], parse_list(given["__image_token_list"], ""), strict=True))
        schedule = tokens_per_layer(num_layers, int(given["__visual_token_num"]), stages)
        assert average_tokens(schedule) == pytest.approx(average, abs=expected / (2 * num_layers))
    for budget, average in SHARES.items():
        given = values(flags("qwen2_5_vl", "vscan", budget, checkpoint, layer))
        assert parse_list(given["__layer_list"], "") == [expected]
        early, (late,) = float(given["__image_token_ratio"]), parse_list(given["__image_token_ratio_list"], "")
        share = early * (expected + (num_layers - expected) * late) / num_layers
        assert share == pytest.approx(average, abs=0.0016)  # the published shares have three digits
        assert ReductionConfig(visual_tokens=early, layers=((expected, late),))


def test_a_layer_of_ones_own_is_in_the_path(project, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps({"num_hidden_layers": 8}))
    answer, _ = dry(project, "llava1_5", "pope", MODELS=tmp_path, MODEL="small", LAYER=5)
    assert answer[-6:] == ["--layer_list", "[5]", "--image_token_list", "[29]", "--visual_token_num", "85"]
    assert "playground/out/eval/llava1_5/pope/small-vscan-11.1-layer5/answers.jsonl" in answer
    answer, _ = dry(project, "llava1_5", "pope", MODELS=tmp_path, MODEL="small")
    assert answer[-6:-4] == ["--layer_list", "[4]"]
    assert "playground/out/eval/llava1_5/pope/small-vscan-11.1/answers.jsonl" in answer


def test_a_config_that_is_wrong_is_named(model):
    checkpoint = model(num_hidden_layers=8, reduction={"vscan": {"prune_layer": 9}})
    with pytest.raises(
        ValueError, match=r"config.json: reduction.vscan.prune_layer: expected a decoder layer of 1 to 7, got"
    ):
        flags("llava1_5", "vscan", "11.1", checkpoint)
    assert flags("llava1_5", "random", "11.1", checkpoint) == ["--method", "random", "--visual_token_num", "64"]
    first = model(num_hidden_layers=8, reduction={"vscan": {"prune_layer": 0}})
    with pytest.raises(
        ValueError, match=r"config.json: reduction.vscan.prune_layer: expected a decoder layer of 1 to 7, got"
    ):
        flags("llava1_5", "vscan", "11.1", first)
    for content, got in (
        ("[]", r"expected a JSON object, got \[\]"),
        ('{"num_hidden_layers": "eight"}', "got 'eight'"),
    ):
        (checkpoint / "config.json").write_text(content)
        with pytest.raises(ValueError, match=got):
            flags("llava1_5", "vscan", "11.1", checkpoint)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*STAGES, *ENCODERS)])
def test_another_method_is_given_the_average_and_finds_its_own_way(tmp_path, method):
    assert flags("llava1_5", method, "22.2", tmp_path) == ["--method", method, "--average", "128"]
    assert flags("qwen2_5_vl", method, "22.2", tmp_path) == ["--method", method, "--average", "0.222"]
    assert flags("llava1_6", method, "dense", tmp_path) == []


def test_budgets_of_clips_are_those_of_a_frame(tmp_path):
    assert flags("video_llava", "fastervlm", "22.2", tmp_path) == ["--method", "fastervlm", "--visual_token_num", "57"]
    assert flags("video_llava", "fastv", "5.6", tmp_path) == ["--method", "fastv", "--average", "14"]
    assert flags("video_llava", "vscan", "dense", tmp_path) == []
    with pytest.raises(ValueError, match=r"BUDGET: expected 25, 22\.2, 11\.1, 5\.6 or dense, got '33\.3'"):
        flags("video_llava", "vscan", "33.3", tmp_path)


def test_the_flags_are_found_without_torch():
    code = "import sys, scripts.reduction_flags; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
