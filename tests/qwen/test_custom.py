"""The classes of `qwen.model.qwen2_5_vl_custom`: the transformers classes, bit for bit, dense and reduced."""

import pytest
import torch
from qwen_helpers import image, inputs_of, tiny_config, tiny_qwen, video
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

import vscan
from qwen.model.qwen2_5_vl_custom import (
    Qwen2_5_VisionTransformerPretrainedModel_X,
    Qwen2_5_VLForConditionalGeneration_X,
    Qwen2_5_VLModel_X,
)

ROWS = [[1, video(2, 5, 4), 5, image(6, 5), 6], [1, 7, 8, 9], [4, 5, image(4, 9), 6]]
REDUCTIONS = [{}, {"visual_tokens": 0.3}, {"visual_tokens": 0.4, "layers": {2: 0.5}}, {"layers": {0: 5}}]


@pytest.fixture(scope="module")
def models():
    return tiny_qwen(), tiny_qwen(Qwen2_5_VLForConditionalGeneration_X)


def test_its_parts_are_the_classes_of_this_module(models):
    _, model = models
    assert type(model.model.visual) is Qwen2_5_VisionTransformerPretrainedModel_X
    assert type(model.model.language_model) is Qwen2_5_VLModel_X
    assert list(model.state_dict()) == list(models[0].state_dict())


@pytest.mark.parametrize("options", REDUCTIONS, ids=str)
def test_both_give_the_same_bits(models, options):
    inputs, outputs = inputs_of(ROWS), []
    for model in models:
        with vscan.reduce(model, **options) as reduction, torch.no_grad():
            logits = model(**inputs).logits
            answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        outputs.append((logits, answer, reduction.kept()))
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


def test_without_a_reduction_it_is_the_stock_model(models):
    inputs, outputs = inputs_of(ROWS), []
    for model in models:
        with torch.no_grad():
            outputs.append(model(**inputs, output_hidden_states=True))
    assert torch.equal(*(output.logits for output in outputs))
    assert all(torch.equal(*pair) for pair in zip(*(output.hidden_states for output in outputs), strict=True))


def test_hidden_states_are_recorded_as_short_as_they_are(models):
    for model in models:
        with vscan.reduce(model, visual_tokens=0.4, layers={2: 0.5}) as reduction, torch.no_grad():
            states = model(**inputs_of(ROWS), output_hidden_states=True).hidden_states
        lengths = reduction.stats().cache_lengths
        assert [state.shape[1] for state in states] == [lengths[0], *lengths]  # what goes in, then what comes out


def test_a_second_reduction_is_refused_and_a_removed_one_leaves_the_classes(models):
    _, model = models
    reduction = vscan.apply(model, visual_tokens=0.5)
    with pytest.raises(ValueError, match="reduced already"):
        vscan.apply(model, visual_tokens=0.5)
    reduction.remove()
    assert type(model.model.language_model) is Qwen2_5_VLModel_X
    assert model.model.language_model.reduction is model.model.visual.reduction is None


@pytest.mark.parametrize(
    ("saved_by", "name"), [(0, "visual.merger.ln_q.weight"), (1, "model.visual.merger.ln_q.weight")]
)
def test_checkpoints_load_in_the_published_layout_and_in_todays(models, saved_by, name, tmp_path):
    stock = models[0]
    models[saved_by].save_pretrained(tmp_path)
    assert name in load_file(tmp_path / "model.safetensors")  # transformers saves its own classes as published
    for cls in (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration_X):
        loaded, found = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), stock.parameters(), strict=True))


def test_a_checkpoint_may_carry_defaults_of_its_own():
    config = tiny_config()
    config.reduction = {"vscan": {"local_layer": 0, "window": 2}}
    reduction = vscan.apply(Qwen2_5_VLForConditionalGeneration_X(config), visual_tokens=0.5, global_layer=-2)
    assert reduction.method == vscan.methods.vscan.VScan(0, -2, 2, capped=True)
