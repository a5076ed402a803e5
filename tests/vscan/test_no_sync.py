"""Selection, merging and pruning never read the device: on meta tensors, which hold no data, a read raises."""

import pytest
import torch
from helpers import tiny_llava

import vscan
from vscan.compat import CACHE, cache_of
from vscan.prompt import VisualPrompt

NUM_TOKENS = 144


@pytest.fixture(scope="module")
def model():
    return tiny_llava().to("meta")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("vscan", {"local_layer": 2}),
        ("vscan", {"local_layer": 2, "merge": False}),
        ("vispruner", {}),
        ("random", {}),
        ("downsample", {}),
        ("divprune", {}),
        ("scope", {}),
        ("visionzip", {}),
        ("prumerge", {}),
        ("prumerge", {"plus": True}),
        ("prumerge", {"plus": True, "adaptive": True}),
    ],
)
@pytest.mark.parametrize("num", [20, 100])
def test_the_vision_stage_reads_nothing(model, method, fields, num):
    with vscan.reduce(model, method, num, **fields):
        features = model.model.get_image_features(torch.empty(3, 3, 48, 48, device="meta")).pooler_output
    assert [tuple(view.shape) for view in features] == [(NUM_TOKENS, 32)] * 3


@pytest.mark.parametrize("num_images", [[1], [2, 0, 1]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_decoder_reads_nothing_of_a_prompt_and_of_what_follows(model, num_images, use_cache):
    batch, length = len(num_images), 300
    prompt = VisualPrompt(
        visual=torch.empty(batch, length, dtype=torch.bool, device="meta"),
        num_views=num_images,
        num_visual=[NUM_TOKENS * number for number in num_images],
        num_kept=[20 * number for number in num_images],
        num_valid=[length, length, 250][:batch],
    )
    text_model = model.model.language_model
    with vscan.reduce(model, visual_tokens=20, layers={0: 15, 3: 0.5}, local_layer=2):
        output = text_model(
            inputs_embeds=torch.empty(batch, length, 32, device="meta"), visual_prompt=prompt, use_cache=use_cache
        )
        # Text alone is the longest row of the second batch; 20 -> 15 -> 7 of one image, in one row.
        longest = [300 - 144 + 15, 300 - 144 + 7] if batch == 1 else [300, 300]
        assert output.last_hidden_state.shape == (batch, longest[1], 32)
        if use_cache:
            cache = cache_of(output)
            assert [cache.get_seq_length(layer) for layer in (0, 2, 3, 5)] == [longest[0]] * 2 + [longest[1]] * 2
            mask = None if batch == 1 else torch.empty(batch, length + 1, device="meta")
            more = text_model(torch.zeros(batch, 1, dtype=torch.long, device="meta"), mask, **{CACHE: cache})
            assert more.last_hidden_state.shape == (batch, 1, 32)
            assert cache.get_seq_length(5) == longest[1] + 1
