"""Whether a model is still the one that was recorded."""

import copy

import pytest
import torch
from helpers import tiny_llava
from torch import nn

from vscan.capture.buckets import Uncaptured
from vscan.capture.identity import Identity


@pytest.fixture
def model():
    return copy.deepcopy(tiny_llava(num_layers=4).model.language_model)


def moved(model):
    model.layers[1].mlp.up_proj.weight.data = model.layers[1].mlp.up_proj.weight.data.clone()


def another(model):
    model.layers[1].mlp.up_proj.weight = nn.Parameter(model.layers[1].mlp.up_proj.weight.clone())


def module(model):
    model.layers[1].mlp.up_proj = copy.deepcopy(model.layers[1].mlp.up_proj)


def cast(model):
    model.to(torch.float64)


def buffer(model):
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq.clone()


def gone(model):
    del model.layers[3]


@pytest.mark.parametrize("change", [moved, another, module, cast, buffer, gone])
def test_another_model_is_told_from_the_one_that_was_recorded(model, change):
    identity = Identity([model], False)
    assert identity.holds()
    change(model)
    assert not identity.holds()


def test_weights_that_change_where_they_lie_are_those_of_the_recording(model):
    identity = Identity([model], False)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.mul_(2)
    assert identity.holds()


def hooked(model):
    model.layers[1].register_forward_hook(lambda *args: None)


def offloaded(model):
    model.layers[1].forward = model.layers[1].forward


def trained(model):
    model.layers[1].train()


@pytest.mark.parametrize(
    ("change", "reason"), [(hooked, "a hook"), (offloaded, "something replaced"), (trained, "training mode")]
)
def test_what_cannot_be_recorded_is_said(model, change, reason):
    identity = Identity([model], False)
    change(model)
    assert not identity.holds()
    with pytest.raises(Uncaptured, match=reason):
        Identity([model], False)


def test_hooks_of_the_root_run_outside_unless_they_are_asked_for(model):
    model.register_forward_hook(lambda *args: None)
    assert Identity([model], False).holds()
    with pytest.raises(Uncaptured, match="a hook"):
        Identity([model], True)
