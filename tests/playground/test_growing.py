"""A deep decoder grows from the trained one, trains on from a small state, and comes out as a checkpoint."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import close

from llava.tokenizer import load_tokenizer
from playground import train as command
from playground.demo import MODEL
from playground.training import growing
from playground.training.export import export, load_exported
from playground.training.growing import THIN_LAYERS, grow, take_apart, train_deep
from playground.training.packing import NAMED_AFTER
from playground.training.parts import DECODER, JOINT, scaled
from playground.training.running import Stage, run_stage
from playground.training.sizes import DEEP


@pytest.fixture(scope="module")
def base():
    return load_exported(MODEL)


def test_a_layers_parts_add_up_to_it(base):
    grown = list(grow(base).decoder.llama.model.layers)
    states = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(0))
    rotation = base.decoder.llama.model.rotary_emb(states, torch.arange(7)[None])
    for layer, number in zip(base.decoder.llama.model.layers, THIN_LAYERS, strict=True):
        thin, grown = grown[:number], grown[number:]
        with torch.no_grad():
            whole = layer.self_attn(states, rotation, None)[0]
            close(sum(part.self_attn(states, rotation, None)[0] for part in thin), whole)
            close(sum(part.mlp(states) for part in thin), layer.mlp(states))
        for part in thin:
            assert torch.equal(part.input_layernorm.weight, layer.input_layernorm.weight)
            assert torch.equal(part.post_attention_layernorm.weight, layer.post_attention_layernorm.weight)
    assert not grown


def test_what_a_thin_layer_has_beyond_its_part_can_learn(base):
    layer = base.decoder.llama.model.layers[0]
    thin = [growing.Decoder(DEEP).llama.model.layers[0] for _ in range(2)]
    take_apart(layer, thin)
    assert not thin[1].self_attn.o_proj.weight.any()
    for name in ("q_proj", "k_proj", "v_proj"):
        assert getattr(thin[1].self_attn, name).weight.std() > 0.01


def test_a_grown_model_is_the_same_every_time_and_shares_the_tower(base):
    first, second = grow(base), grow(base)
    for name, value in first.state_dict().items():
        assert name.startswith("decoder.oracle.") or torch.equal(second.state_dict()[name], value), name
    assert first.tower is base.tower
    assert len(first.decoder.llama.model.layers) == 28
    assert NAMED_AFTER[28] == 14


def test_the_exported_model_that_it_grows_from_is_read_whole(base, tmp_path):
    export(base, MODEL, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()


def test_a_deep_model_trains_from_its_small_state_and_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("playground.training.running.NUM_VALIDATION", 1)
    monkeypatch.setattr(growing, "SIDES", (8,))
    monkeypatch.setattr(growing, "GRID", 8)
    folder, tokenizer = tmp_path / "deep" / "state", load_tokenizer(MODEL)
    folder.mkdir(parents=True)
    stage = Stage("deep", 2, 1, 1e-3, warmup=1, matrix_rate=5e-3, compact=True)
    model = train_deep(folder, "cpu", tokenizer, MODEL, stage)
    assert (folder / "deep.pt").stat().st_size < 18e6
    again = train_deep(folder, "cpu", tokenizer, MODEL, stage)  # done: read back, rounded
    for name, value in model.state_dict().items():
        # What only the training of a tower or a first decoder needs is new each time.
        if "oracle" not in name and not name.startswith(("tower.patch_head", "tower.scene_head")):
            torch.testing.assert_close(again.state_dict()[name], value, atol=1e-4, rtol=1e-3, msg=name)
    rows = [json.loads(line) for line in (folder / "deep.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]

    export(model, MODEL, tmp_path / "deep")
    assert (folder / "deep.pt").exists()  # a training may go on
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    assert config["reduction"] == {"vscan": {"local_layer": 1, "prune_layer": 14}}
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (28, 192)
    assert (tmp_path / "deep" / "model.safetensors").stat().st_size < 12e6


class Two(torch.nn.Module):
    """A layer that is trained and one that is not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained, self.frozen = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).requires_grad_(False)

    def loss(self, step):
        return (self.frozen(self.trained(torch.ones(2, 3) * step)) - 1).square().mean()


def test_a_compact_state_holds_what_is_trained_in_half_precision_and_goes_on(tmp_path):
    stage = Stage("small", 6, 1, 1e-2, warmup=2, compact=True)
    whole, cut = Two(), Two()
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run_stage(stage, tmp_path / "whole", whole, whole.loss, dict, evaluate_every=3)
    run_stage(replace(stage, steps=3), tmp_path / "cut", cut, cut.loss, dict, evaluate_every=3)
    state = torch.load(tmp_path / "cut" / "small.pt", weights_only=True)
    assert {name: value.dtype for name, value in state["model"].items()} == {
        "trained.weight": torch.float16,
        "trained.bias": torch.float16,
    }
    moments = state["optimisers"][0]["state"][0]
    assert (moments["exp_avg"].dtype, moments["step"]) == (torch.bfloat16, 3)
    assert state["step"] == 3
    again = Two()
    run_stage(stage, tmp_path / "cut", again, again.loss, dict, evaluate_every=3)
    assert not torch.equal(again.trained.weight, Two().trained.weight)
    assert torch.load(tmp_path / "cut" / "small.pt", weights_only=True)["step"] == 6


def test_a_share_of_the_steps_is_trained_as_all_would_be():
    for stage in (DECODER, *JOINT):
        assert scaled(stage, 1.0) == stage
        assert scaled(stage, 2.0) == replace(stage, steps=2 * stage.steps)
    assert scaled(DECODER, 0.001) == replace(DECODER, steps=2, warmup=1)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The parts that the command starts, in place of starting them: (model, part, base, folder of its checkpoint)."""
    parts = []
    monkeypatch.setattr(command, "wait", lambda processes: None)
    monkeypatch.setattr(command, "start", lambda a, part, **_: parts.append((a.model, part, a.base, a.to)))
    folders = {name: (tmp_path / name / "state", tmp_path / name) for name in command.FOLDERS}
    monkeypatch.setattr(command, "FOLDERS", folders)
    return parts


def test_a_deep_model_grows_from_the_shipped_one(started, tmp_path):
    command.main(["--model", "tiny-llava-deep", "--device", "cpu"])
    assert started == [("tiny-llava-deep", "deep", MODEL, tmp_path / "tiny-llava-deep")]
    assert (tmp_path / "tiny-llava-deep" / "state" / "tokenizer.model").exists()
    command.main(["--model", "tiny-llava-deep", "--device", "cpu"])  # goes on
    assert len(started) == 2


def test_from_nothing_the_tiny_one_is_trained_first(started, tmp_path):
    command.main(["--model", "tiny-llava-deep", "--from-nothing", "--device", "cpu"])
    tiny = [("tiny-llava", part, MODEL, tmp_path / "tiny-llava") for part in ("tower", "decoder", "joint", "joint")]
    assert started == [*tiny, ("tiny-llava-deep", "deep", tmp_path / "tiny-llava", tmp_path / "tiny-llava-deep")]


def test_a_base_that_is_none_is_refused(started, tmp_path):
    with pytest.raises(ValueError, match="--base: expected the folder of a trained tiny-llava, or --from-nothing, got"):
        command.main(["--model", "tiny-llava-deep", "--base", str(tmp_path / "nowhere")])
    assert not started
