"""What is checked of every clip that runs under a reduction, and of a tower that attends over time before one does."""

import pytest
import torch
from transformers import LlamaModel
from video_helpers import clip, inputs_of, picture, tiny_original_video, tiny_video_llava

import vscan
from llava.model.multimodal_encoder.video_encoder import TemporalLayer
from vscan.checks import selftest
from vscan.errors import LibraryChanged

REDUCTIONS = [
    {"visual_tokens": 20, "local_layer": 1},
    {"layers": {2: 6}},
    {"layers": {2: 6}, "frame_cls": "drop"},
    {"method": "fastervlm", "visual_tokens": 20, "group": "image"},
]
MODELS = {"stock": tiny_video_llava, "original": tiny_original_video}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("place", ["clip", "picture"])
@torch.no_grad()
def test_a_clip_or_an_image_that_is_not_finite_is_an_error(model, reduction, place):
    parts = {"clip": clip(), "picture": picture()}
    parts[place].view(-1)[100] = torch.nan
    inputs = inputs_of(model, [[1, *parts.values(), 5]])
    with vscan.reduce(model, **reduction), pytest.raises(ValueError, match="visual features that are finite, got NaN"):
        model(**inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@torch.no_grad()
def test_a_decoder_that_is_not_entered_is_an_error(model, reduction, monkeypatch):
    inputs = inputs_of(model, [[1, clip(), 5]])
    text_model = model.model if hasattr(model, "encode_images") else model.model.language_model
    with vscan.reduce(model, **reduction):
        monkeypatch.setattr(
            text_model,
            "forward",
            lambda *args, visual_prompt=None, **kwargs: LlamaModel.forward(text_model, *args, **kwargs),
            raising=False,
        )
        with pytest.raises(RuntimeError, match="was not entered: something replaced the forward of its language model"):
            model(**inputs)


def wrong(layer, hidden, mask=None, is_mixed=False, **kwargs):
    """Time once more."""
    return super(TemporalLayer, layer).forward(layer.over_time(hidden), mask, **kwargs)


def test_a_tower_whose_blocks_do_something_else_with_time_is_told_before_it_is_reduced(monkeypatch):
    model = tiny_original_video()
    monkeypatch.setattr(TemporalLayer, "forward", wrong)
    monkeypatch.setattr(selftest, "_passed", set())
    with pytest.raises(LibraryChanged, match="the features of a CLIP tower"):
        vscan.apply(model, visual_tokens=20, local_layer=1)
