"""The self-test: silent on every model that the library computes as it should, whatever the settings of the process;
it and the checks at run time speak for every family and format alike. What they find is in test_library_changes.py.
"""

import functools

import pytest
import torch
import transformers.models.clip.modeling_clip as clip
from contracts.families import FAMILIES, ROWS
from helpers import tiny_llava
from transformers import DynamicCache, LlamaConfig, LlamaModel

import vscan
from vscan.checks import selftest
from vscan.compat import CACHE, LibraryChanged, check, text_model_of

every_family = pytest.mark.parametrize("name", FAMILIES)
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": LLAMA3,
    "longrope": {**FACTORS, "factor": 2.0, "original_max_position_embeddings": 64},
}


@pytest.fixture
def untried(monkeypatch):
    """No model has passed the self-test yet."""
    monkeypatch.setattr(selftest, "_passed", set())


@pytest.mark.parametrize("more", [{}, {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}])
@pytest.mark.parametrize("rope", ROPES)
def test_a_llama_of_any_rotary_embedding_passes(untried, rope, more):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        rope_parameters={"rope_type": rope, "rope_theta": 1e4, **ROPES[rope]},
        **more,
    )
    selftest.check_text_model(LlamaModel(config), LlamaModel)
    assert len(selftest._passed) == 1


@pytest.fixture(params=["bfloat16", "float64", "inference", "meta", "deterministic", "autocast"])
def setting(request):
    """A setting of the process under which a user may call."""
    if request.param in ("bfloat16", "float64"):
        torch.set_default_dtype(getattr(torch, request.param))
        yield
        torch.set_default_dtype(torch.float32)
    elif request.param == "deterministic":
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)
    else:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        with {"inference": torch.inference_mode(), "meta": torch.device("meta"), "autocast": autocast}[request.param]:
            yield


def test_settings_of_the_process_are_no_change_of_the_library(untried, setting):
    check(tiny_model())
    assert len(selftest._passed) == 2  # of the text model and of the tower


@functools.cache
def tiny_model():
    return tiny_llava(num_layers=4, vision_layers=4, side=8)


tiny_model()  # made before a fixture changes what models are made in


@pytest.mark.parametrize("way", ["bfloat16", "eager", "train"])
def test_a_model_in_another_state_passes(untried, way):
    model = tiny_llava(num_layers=2, vision_layers=3, side=8)
    {"bfloat16": model.bfloat16, "eager": lambda: model.set_attn_implementation("eager"), "train": model.train}[way]()
    check(model)
    assert len(selftest._passed) == 2


@every_family
def test_a_text_model_that_computes_something_else_is_found_in_every_family(untried, monkeypatch, name):
    model = FAMILIES[name].model
    norm = type(text_model_of(model).norm)
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, hidden: forward(self, hidden).roll(1, dims=1))
    with pytest.raises(LibraryChanged, match="to be the same from transformers and from vscan"):
        check(model)


def call_of(name):
    family = FAMILIES[name]
    return family.model, family.inputs(family.model, ROWS["unequal"]), family.settings


def change_forward(monkeypatch, cls, change):
    forward = cls.forward

    @functools.wraps(forward)
    def changed(self, *args, **kwargs):
        return change(forward(self, *args, **kwargs))

    monkeypatch.setattr(cls, "forward", changed)


@every_family
def test_a_head_that_returns_another_cache_is_found_in_every_family(monkeypatch, name):
    model, inputs, settings = call_of(name)

    def change(output):
        output[CACHE] = DynamicCache()
        return output

    change_forward(monkeypatch, type(model), change)
    with vscan.reduce(model, **settings), pytest.raises(LibraryChanged, match="the reduced prompt at every later step"):
        model.generate(inputs.pop("input_ids"), **inputs, max_new_tokens=3)


@every_family
def test_a_decoder_whose_cache_keeps_nothing_is_found_in_every_family(monkeypatch, name):
    monkeypatch.setenv("VSCAN_SELFTEST", "0")
    model, inputs, settings = call_of(name)
    layer = type(text_model_of(model).layers[-1])
    forward = layer.forward

    @functools.wraps(forward)
    def forgets(self, *args, **kwargs):
        return forward(self, *args, **{**kwargs, CACHE: None})

    monkeypatch.setattr(layer, "forward", forgets)
    with (
        vscan.reduce(model, **settings),
        pytest.raises(LibraryChanged, match="columns in the cache of layer 0 after the prompt, got 0"),
    ):
        model(**inputs, use_cache=True)


def test_a_clip_block_that_does_more_than_its_parts_is_found(untried, monkeypatch):
    forward = clip.CLIPEncoderLayer.forward
    monkeypatch.setattr(
        clip.CLIPEncoderLayer, "forward", lambda self, *args, **kwargs: 1.1 * forward(self, *args, **kwargs)
    )
    with pytest.raises(LibraryChanged, match="expected the features of a CLIP tower taken apart to be the same"):
        check(tiny_model())
