"""Merging against a slow float64 loop, and by hand where the numbers are exact."""

import pytest
import torch
from helpers import close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vscan.select.merge import merge, sums_by_product, sums_in_order

quick = settings(deadline=None, derandomize=True, max_examples=150)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


def merge_by_hand(tokens, kept):
    """One view in float64: the merged tokens, and how clearly the nearest ones were the nearest."""
    tokens = tokens.double()
    units = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    groups = {index: [index] for index in kept}
    margin = torch.inf
    for index in set(range(len(tokens))) - set(kept):
        similarities = [float(units[index] @ units[other]) for other in kept]
        groups[kept[similarities.index(max(similarities))]].append(index)
        if len(kept) > 1:
            first, second = sorted(similarities, reverse=True)[:2]
            margin = min(margin, first - second)
    return torch.stack([sum(tokens[i] for i in groups[index]) / len(groups[index]) for index in kept]), margin


def some_kept(num_views, num_tokens, num_kept, generator):
    """Distinct tokens of every view, in no order."""
    return torch.rand(num_views, num_tokens, generator=generator).argsort(dim=1)[:, :num_kept]


@st.composite
def some_tokens(draw, most=24):
    """Tokens [V, N, D] and kept indices [V, T], T <= N."""
    num_views, num_tokens, width = draw(st.integers(1, 3)), draw(st.integers(1, most)), draw(st.integers(2, 20))
    num_kept = draw(st.integers(1, num_tokens))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    tokens = torch.randn(num_views, num_tokens, width, generator=generator)
    scales = torch.rand(num_views, num_tokens, 1, generator=generator) * 10
    return tokens * scales, some_kept(num_views, num_tokens, num_kept, generator)


@quick
@given(some_tokens())
def test_every_dropped_token_is_averaged_into_the_kept_one_it_is_most_similar_to(setting):
    tokens, kept = setting
    by_hand = [merge_by_hand(view, chosen) for view, chosen in zip(tokens, kept.tolist(), strict=True)]
    assume(all(margin > 1e-5 for _, margin in by_hand))
    before = tokens.clone()
    merged = merge(tokens, kept)
    assert merged.dtype == torch.float32
    close(merged.double(), torch.stack([view for view, _ in by_hand]), 1e-5)
    assert torch.equal(tokens, before)


@quick
@given(
    num_views=st.integers(1, 3),
    num_tokens=st.integers(1, 24),
    width=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_the_first_kept_token_wins_a_tie(num_views, num_tokens, width, seed, data):
    # Powers of two along one axis each: all similarities are exactly 0, 1 or -1, and most are shared by several.
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randint(width, (num_views, num_tokens, 1), generator=generator)
    signs = 2.0 * torch.randint(2, (num_views, num_tokens, 1), generator=generator) - 1
    lengths = 2.0 ** torch.randint(-3, 4, (num_views, num_tokens, 1), generator=generator)
    tokens = torch.zeros(num_views, num_tokens, width).scatter_(2, axes, signs * lengths)
    kept = some_kept(num_views, num_tokens, data.draw(st.integers(1, num_tokens)), generator)
    by_hand = [merge_by_hand(view, chosen)[0] for view, chosen in zip(tokens, kept.tolist(), strict=True)]
    assert torch.equal(merge(tokens, kept), torch.stack(by_hand).float())


def test_merging_by_hand():
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [8.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    # Tokens 2 and 5 point along token 0, token 4 along token 1; token 3 points nowhere and goes to the first kept one.
    expected = torch.tensor([[[0.0, 5.0 / 3], [4.0, 0.0]]])
    torch.testing.assert_close(merge(tokens, torch.tensor([[1, 0]])), expected)


def test_a_kept_token_weighs_as_much_as_each_that_joins_it():
    tokens = torch.cat((torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 0.0]]).repeat(7, 1))).unsqueeze(0)
    assert merge(tokens, torch.tensor([[0]])).tolist() == [[[2.0, 0.0]]]  # (9 + 7 x 1) / (7 + 1)


def test_kept_twins_stay_their_own():
    tokens = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [-1.0, 2.0]]])
    kept = torch.tensor([[2, 0, 1, 4]])
    assert merge(tokens, kept).tolist() == [[[2.5, 5.0], [1.0, 2.0], [1.0, 2.0], [-1.0, 2.0]]]


def test_a_token_that_nothing_joins_is_unchanged():
    tokens = torch.tensor([[[1.0, 0.1], [0.3, 1.0], [0.7, 0.1]]])
    assert torch.equal(merge(tokens, torch.tensor([[0, 1]]))[0, 1], tokens[0, 1])


@quick
@given(some_tokens(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_with_nothing_dropped_the_tokens_come_back_in_the_order_asked_for(setting, dtype):
    tokens = setting[0].to(dtype)
    everything = some_kept(*tokens.shape[:2], tokens.shape[1], torch.Generator().manual_seed(0))
    merged = merge(tokens, everything)
    assert merged.dtype == dtype
    assert torch.equal(merged, tokens.take_along_dim(everything.unsqueeze(-1), dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_it_came_and_is_summed_in_fp32(dtype):
    generator = torch.Generator().manual_seed(1)
    tokens = (torch.randn(2, 400, 8, generator=generator) + 3).to(dtype)
    kept = some_kept(2, 400, 3, generator)
    merged = merge(tokens, kept)
    assert merged.dtype == dtype
    by_hand = torch.stack([merge_by_hand(view, chosen)[0] for view, chosen in zip(tokens, kept.tolist(), strict=True)])
    # Half a unit in the last place is the rounding of the result; sums of about 400 numbers in half precision lose
    # several times that.
    torch.testing.assert_close(merged.double(), by_hand, rtol=0.51 * torch.finfo(dtype).eps, atol=0)


def test_a_sum_beyond_the_range_of_fp16_does_not_overflow():
    merged = merge(torch.full((1, 20, 4), 60000.0, dtype=torch.float16), torch.tensor([[0]]))
    assert torch.equal(merged, torch.full((1, 1, 4), 60000.0, dtype=torch.float16))


@quick
@given(some_tokens())
def test_a_batch_of_views_equals_each_view_alone(setting):
    tokens, kept = setting
    assume(all(merge_by_hand(view, chosen)[1] > 1e-5 for view, chosen in zip(tokens, kept.tolist(), strict=True)))
    alone = torch.cat([merge(tokens[row : row + 1], kept[row : row + 1]) for row in range(len(tokens))])
    torch.testing.assert_close(merge(tokens, kept), alone)


@pytest.mark.parametrize(("num_tokens", "num_kept", "width"), [(60, 20, 30), (64, 40, 8), (50, 1, 16), (40, 39, 40)])
@pytest.mark.parametrize("num_views", [1, 3])
def test_no_tensor_is_larger_than_the_tokens_or_the_similarities(num_views, num_tokens, num_kept, width):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(num_views, num_tokens, width, generator=generator)
    with Largest() as largest:
        merge(tokens, some_kept(num_views, num_tokens, num_kept, generator))
    assert 0 < largest.numel <= num_views * max(num_tokens * num_kept, num_tokens * width)


def test_shapes_are_known_without_the_data():
    kept = torch.empty(2, 96, dtype=torch.long, device="meta")  # reading a value of a meta tensor is an error
    assert merge(torch.empty(2, 576, 64, device="meta"), kept).shape == (2, 96, 64)


@quick
@given(some_tokens())
def test_a_gpu_sums_the_same_groups(drawn):
    tokens, kept = drawn
    num_groups = kept.shape[1]
    groups = (tokens[:, :, 0].abs() * 7).long() % num_groups
    for found, expected in zip(
        sums_by_product(tokens, groups, num_groups), sums_in_order(tokens, groups, num_groups), strict=True
    ):
        close(found, expected, 1e-5)
