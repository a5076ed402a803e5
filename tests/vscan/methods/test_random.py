"""Random is uniform over tokens, and nothing but the pixel values and the seed decides it."""

import pytest
import torch
from helpers import encoded
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.methods import method_class
from vscan.methods.base import Views
from vscan.methods.random import Random, content_keys, mix, stream

BITS = 2**64 - 1


def views_of(pixel_values: torch.Tensor, num_tokens: int = 16) -> Views:
    features = torch.arange(float(num_tokens), device=pixel_values.device).repeat(len(pixel_values), 1).unsqueeze(-1)
    return Views(pixel_values, features, {}, (1, num_tokens), lambda tokens: tokens)


def slots_of(pixel_values: torch.Tensor, num: int = 4, num_tokens: int = 16, seed: int = 0) -> torch.Tensor:
    return encoded(Random(seed), views_of(pixel_values, num_tokens), num)[1]


def noise(num_views: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_views, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def flat(num_views: int) -> torch.Tensor:
    """Images of one grey each: as alike as images can be."""
    return (torch.arange(num_views) / num_views).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def mix_by_hand(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & BITS
    return bits ^ (bits >> 31)


def signed(bits: int) -> int:
    return bits - 2**64 if bits >> 63 else bits


def test_the_stream_of_state_zero_is_that_of_splitmix64():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value & BITS for value in stream(torch.zeros(1, dtype=torch.long), 3)[0].tolist()] == published


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, BITS), min_size=1, max_size=20))
def test_mixing_equals_64_bit_arithmetic_by_hand(values):
    assert mix(torch.tensor([signed(v) for v in values])).tolist() == [signed(mix_by_hand(v)) for v in values]


@pytest.mark.parametrize("images", [noise, flat])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_token_and_every_pair_is_kept_equally_often(images, seed):
    num_views, num_tokens, num = 4000, 16, 4
    slots = slots_of(images(num_views), num, num_tokens, seed)
    kept = torch.zeros(num_views, num_tokens).scatter(1, slots, 1.0)
    share = num / num_tokens
    squares = (kept.sum(dim=0) - num_views * share) ** 2 / (num_views * share * (1 - share))
    # Counts of a sample without replacement: times (N - 1) / N this is chi-square with N - 1 = 15 degrees of freedom,
    # beyond 44 once in 10,000 draws.
    assert squares.sum() * (num_tokens - 1) / num_tokens < 44
    pair_share = share * (num - 1) / (num_tokens - 1)
    together = (kept.T @ kept)[tuple(torch.triu_indices(num_tokens, num_tokens, offset=1))]
    deviations = (together - num_views * pair_share) / (num_views * pair_share * (1 - pair_share)) ** 0.5
    assert deviations.abs().max() < 4.5
    assert 0.8 < deviations.std() < 1.2


@settings(deadline=None, derandomize=True)
@given(data=st.data(), num_tokens=st.integers(2, 100), seed=st.integers(0, 2**63 - 1))
def test_exactly_as_many_distinct_ascending_slots_as_asked_for(data, num_tokens, seed):
    num = data.draw(st.integers(1, num_tokens - 1))
    values, slots = encoded(Random(seed), views_of(noise(3), num_tokens), num)
    assert slots.shape == (3, num)
    assert slots.dtype == torch.long
    assert (slots.diff(dim=1) > 0).all()
    assert slots.min() >= 0
    assert slots.max() < num_tokens
    assert values.squeeze(-1).long().equal(slots)  # the feature of a token is its number


def test_an_image_has_the_same_subset_in_every_batch():
    images = noise(6)
    together = slots_of(images, 40, 100)
    assert together.flip(0).equal(slots_of(images.flip(0), 40, 100))
    for view in range(6):
        assert together[view].equal(slots_of(images[view : view + 1], 40, 100)[0])


def test_the_memory_layout_of_an_image_does_not_matter():
    images = noise(4)
    assert slots_of(images).equal(slots_of(images.to(memory_format=torch.channels_last)))
    assert slots_of(images)[::2].equal(slots_of(images[::2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_dtype_is_taken_by_its_value(dtype):
    images = noise(4).bfloat16()  # values that all dtypes hold, in their range
    assert content_keys(images.to(dtype)).equal(content_keys(images.float()))


def test_one_value_changed_by_one_bit_gives_another_subset():
    image = noise(1)
    changed = image.repeat(48, 1, 1, 1).flatten(1)
    diagonal = torch.arange(48)
    changed[diagonal, diagonal] = changed[diagonal, diagonal].nextafter(torch.tensor(torch.inf))
    slots = slots_of(torch.cat((image, changed.view(48, 3, 4, 4))), 40, 100)
    assert slots.unique(dim=0).shape[0] == 49


def test_two_values_exchanged_give_another_subset():
    image = noise(1)
    assert not slots_of(image, 40, 100).equal(slots_of(image.flip(-1), 40, 100))


def test_the_seed_gives_another_subset():
    subsets = torch.cat([slots_of(noise(1), 40, 100, seed) for seed in range(20)])
    assert subsets.unique(dim=0).shape[0] == 20


def test_the_global_generator_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, scores = slots_of(noise(2)), Random().scores(torch.rand(1, 2, 9, generator=torch.Generator()))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert slots_of(noise(2)).equal(first)
    assert Random().scores(torch.zeros(1, 2, 9)).equal(scores)


def test_selection_reads_no_value_back():
    # A meta tensor has no values: anything that would wait for the device fails on it.
    assert slots_of(torch.empty(2, 3, 4, 4, device="meta"), 5).shape == (2, 5)
    assert Random().scores(torch.empty(2, 4, 9, device="meta")).shape == (2, 9)


def test_decoder_scores_do_not_move_with_padding_on_the_left():
    long, short = Random(3).scores(torch.rand(2, 4, 700)), Random(3).scores(torch.rand(1, 8, 620))
    assert long.dtype == torch.float32
    assert long.shape == (2, 700)
    assert long[0].equal(long[1])
    assert long[0, -620:].equal(short[0])


def test_decoder_scores_are_uniform_and_follow_the_seed():
    scores = torch.cat([Random(seed).scores(torch.zeros(1, 1, 1000)) for seed in range(20)])
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = scores.flatten().histc(bins=10, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 34  # chi-square, 9 degrees of freedom: once in 10,000 draws
    assert (torch.corrcoef(scores) - torch.eye(20)).abs().max() < 0.15


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed: expected an int in \[0, 9223372036854775807\], got"):
        Random(seed)


def test_it_is_found_by_its_name():
    assert method_class("random") is Random
