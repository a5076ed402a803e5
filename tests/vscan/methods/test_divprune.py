"""DivPrune where recorded data says nothing: repeated tokens, every budget, its own shares, models."""

import pytest
import torch
from helpers import encoded, pictures, prompt, tiny_llava

import vscan
from vscan.config import ReductionConfig
from vscan.methods.base import Views
from vscan.methods.divprune import DivPrune
from vscan.plan import scheduled


def views_of(tokens: torch.Tensor, project=lambda features: features) -> Views:
    """One row of tokens a view."""
    return Views(torch.zeros(len(tokens), 3, 2, 2), tokens, {}, (1, tokens.shape[1]), project)


def test_flat_pictures_keep_as_many_tokens_as_asked_for_and_none_twice():
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(1, 6, 5, generator=generator)
    tokens = torch.cat((different[:, :1].expand(-1, 20, -1), different), dim=1)  # sky, and five other things
    for num in range(6, 26):
        slots = DivPrune().encode(views_of(tokens), num).slots[0].tolist()
        assert slots == sorted({0, *range(num - 6 + 1), *range(21, 26)})
    assert DivPrune().encode(views_of(torch.ones(2, 9, 3)), 4).slots.tolist() == [[0, 1, 2, 3]] * 2


def test_it_sees_what_the_decoder_would_see():
    """Features that differ only where the projector looks away are one token."""
    features = torch.tensor([[[1.0, 0, 5], [1, 0, 6], [0, 1, 7], [1, 0, 8]]])
    values, slots = encoded(DivPrune(), views_of(features, lambda tokens: tokens[..., :2]), 2)
    assert slots.tolist() == [[0, 2]]
    assert values.tolist() == [[[1, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("average", "num_tokens", "expected"),
    [(64, 576, 64), (0.098, 576, 56), (1 / 9, 576, 64), (0.5, 5, 2), (0.5, 7, 4), (0.001, 100, 1), (0.25, None, 0.25)],
)
def test_a_share_of_the_average_is_rounded_half_to_even(average, num_tokens, expected):
    config = scheduled(ReductionConfig("divprune", average=average), DivPrune(), 32, num_tokens)
    assert (config.visual_tokens, config.layers) == (expected, ())


def test_pictures_of_one_batch_keep_their_own():
    model = tiny_llava(side=6)
    pixels = pictures(model, 2)
    kept = []
    for chosen in ([0, 1], [0], [1]):
        ids, mask = prompt([[1, "image", 5]] * len(chosen), 36)
        with vscan.reduce(model, "divprune", 7) as reduction, torch.no_grad():
            model(ids, pixel_values=pixels[chosen], attention_mask=mask)
            kept += reduction.kept(0).tolist()
    assert kept[:2] == kept[2:]
    assert kept[0] != kept[1]
