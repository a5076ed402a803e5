"""Models whose weights are not simply there: spread or offloaded by accelerate, wrapped by adapters, quantised."""

import inspect

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from helpers import pictures, prompt, tiny_llava
from torch import nn

import vscan
from vscan.compat import cache_of

SETTING = {"visual_tokens": 20, "layers": {2: 9, 4: 5}, "local_layer": 2}
NUM_TOKENS = 144


def run(model):
    """Two prompts of unequal length: new tokens, kept columns and cache lengths under the reduction."""
    ids, mask = prompt([[1, 5, 6, "image", 7], [1, "image", 8, 9, 10, 11]], NUM_TOKENS)
    with vscan.reduce(model, **SETTING) as reduction:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pictures(model, 2),
            max_new_tokens=5,
            do_sample=False,
            return_dict_in_generate=True,
        )
        kept = [reduction.kept(stage).tolist() for stage in range(3)]
    lengths = [cache_of(output).get_seq_length(layer) for layer in range(6)]
    return output.sequences[:, ids.shape[1] :].tolist(), kept, lengths


@pytest.fixture(scope="module")
def expected():
    return run(tiny_llava())


def test_the_plain_model_is_reduced(expected):
    # 6 text tokens in the longer row, 4 decoded ones; the padded row is no longer than that.
    assert expected[2] == [6 - 1 + 20 + 4] * 2 + [6 - 1 + 9 + 4] * 2 + [6 - 1 + 5 + 4] * 2


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu"},
        {
            "model.vision_tower": "cpu",
            "model.multi_modal_projector": "cpu",
            "model.language_model": "cpu",
            "lm_head": "cpu",
        },
    ],
    ids=["whole", "text model as one entry"],
)
def test_a_model_spread_by_a_device_map(expected, device_map):
    model = dispatch_model(tiny_llava(), device_map, main_device="cpu", force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in model.modules())
    before = model.model.language_model.__dict__.get("_old_forward")
    assert run(model) == expected
    assert model.model.language_model.__dict__.get("_old_forward") == before


def test_a_model_whose_weights_are_offloaded(expected):
    model = tiny_llava()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.language_model.layers[2].self_attn.q_proj.weight.device.type == "meta"
    assert run(model) == expected


class Unreadable(nn.Module):
    """Stands in for an adapter or a quantised layer: it can be called, its weight cannot be read."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.call = layer.forward

    @property
    def weight(self):
        raise RuntimeError("this weight cannot be read")

    def forward(self, hidden):
        return self.call(hidden)


def test_layers_whose_weight_cannot_be_read(expected):
    model = tiny_llava()
    for layer in [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers]:
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(layer.self_attn, name, Unreadable(getattr(layer.self_attn, name)))
    assert run(model) == expected


def test_a_decoder_that_was_bypassed_is_noticed():
    model = tiny_llava()
    text_model = model.model.language_model
    text_model.forward = type(text_model).forward.__get__(text_model)  # what some wrappers do to an instance
    ids, _ = prompt([[1, "image", 7]], NUM_TOKENS)
    with vscan.reduce(model, **SETTING), pytest.raises(RuntimeError, match="was not entered"):
        model.generate(input_ids=ids, pixel_values=pictures(model, 1), max_new_tokens=2)


def test_features_that_were_encoded_dense_are_refused():
    model = tiny_llava()
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers does not take encoded images")
    ids, _ = prompt([[1, "image", 7]], NUM_TOKENS)
    dense = model.model.get_image_features(pictures(model, 1), return_dict=True)
    with vscan.reduce(model, **SETTING) as reduction:
        with pytest.raises(ValueError, match="encoded under this reduction, got dense ones"):
            model(input_ids=ids, mm_encoder_outputs={"image": dense})
        reduced = model.model.get_image_features(pictures(model, 1), return_dict=True)
        expected = model(input_ids=ids, pixel_values=pictures(model, 1)).logits
        assert torch.equal(model(input_ids=ids, mm_encoder_outputs={"image": reduced}).logits, expected)
        assert reduction.kept().shape == (1, 2 + 5)


class Adapted(nn.Module):
    """Stands in for an adapter library's wrapper around a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def get_base_model(self):
        return self.model

    def generate(self, **kwargs):
        return self.model.generate(**kwargs)


def test_a_model_inside_an_adapter_library_s_wrapper_is_reduced(expected):
    model = Adapted(tiny_llava())
    ids, mask = prompt([[1, 5, 6, "image", 7], [1, "image", 8, 9, 10, 11]], NUM_TOKENS)
    with vscan.reduce(model, **SETTING):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pictures(model.model, 2),
            max_new_tokens=5,
            do_sample=False,
        )
    assert output[:, ids.shape[1] :].tolist() == expected[0]
