"""PruMerge where recorded data says nothing: budgets of PruMerge+, no outliers, tiny grids, slots, refusals."""

import pytest
import torch
from qwen_helpers import tiny_qwen

import vscan
from vscan.methods.base import Views
from vscan.methods.prumerge import CLUSTER, PruMerge, outliers


def views_of(logits: torch.Tensor, seed: int = 0) -> Views:
    """Views whose patches have these logits [V, N] of attention; keys differ in another direction as well."""
    num_views, num_tokens = logits.shape
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(num_views, 1 + num_tokens, 4, generator=generator)
    keys[:, 1:, 0] = 2 * logits  # the query is the first direction, and 4 its width
    features = torch.randn(num_views, num_tokens, 3, generator=generator)
    query = torch.tensor([1.0, 0, 0, 0]).expand(num_views, -1)
    return Views(features, features, {}, (1, num_tokens), lambda rows: rows, None, {-1: keys}, {-1: query})


def scores_of(views: Views) -> torch.Tensor:
    return (views.keys[-1][..., 0] / 2).softmax(dim=-1)[:, 1:]


def by_hand(views: Views, kept: list[int]) -> torch.Tensor:
    features, scores, keys = views.features[0], scores_of(views)[0], views.keys[-1][0, 1:]
    num_tokens, rows = len(features), []
    for patch in kept:
        others = [token for token in range(num_tokens) if token != patch]
        near = torch.nn.functional.cosine_similarity(keys[others], keys[patch : patch + 1], dim=-1)
        nearest = [others[at] for at in near.sort(descending=True, stable=True).indices[:CLUSTER]]
        rows.append(features[patch] + sum(scores[token] * features[token] for token in nearest))
    dropped = [token for token in range(num_tokens) if token not in kept]
    return torch.stack([*rows, sum(scores[token] * features[token] for token in dropped)])


@pytest.mark.parametrize("num_tokens", [5, 20, 60])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_tokens_in_descending_attention_and_one_for_all_that_is_dropped(num_tokens, num):
    logits = torch.randn(1, num_tokens, generator=torch.Generator().manual_seed(3))
    views = views_of(logits)
    kept, order = PruMerge().encode(views, num), logits[0].sort(descending=True).indices.tolist()
    torch.testing.assert_close(kept.values[0], by_hand(views, order[: num - 1]))
    assert kept.slots[0].tolist() == sorted(order[:num])
    assert kept.into[0, order].tolist() == [*range(num - 1), *[num - 1] * (num_tokens - num + 1)]


@pytest.mark.parametrize(
    ("num", "first", "grid"),
    [
        (1, [], []),
        (2, [], [0]),
        (4, [11], [0, 5]),  # of the other 11 those numbered 0 and 5
        (8, [11, 10], [0, 2, 4, 6, 8]),
        (11, [11, 10], [0, 1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_plus_takes_a_quarter_by_attention_and_the_rest_on_an_even_grid(num, first, grid):
    views = views_of(torch.arange(12.0).unsqueeze(0))
    kept = PruMerge(plus=True).encode(views, num)
    order = first + grid
    assert kept.into[0, order].tolist() == list(range(num - 1))
    assert (kept.into[0] == num - 1).sum() == 12 - len(order)
    torch.testing.assert_close(kept.values[0], by_hand(views, order))
    assert len(set(kept.slots[0].tolist())) == num


@pytest.mark.parametrize("plus", [False, True])
def test_views_of_a_batch_have_outliers_of_their_own(plus):
    logits = torch.zeros(3, 48)
    logits[0, [5, 40]] = 4.0
    logits[2, [0, 1, 2, 3, 4, 5, 6]] = torch.arange(10.0, 3, -1)
    logits += 0.01 * torch.arange(48) % 0.3
    views = views_of(logits)
    numbers = outliers(scores_of(views))[:, 0].tolist()
    assert numbers == [2, 0, 7]
    kept = PruMerge(plus, adaptive=True).encode(views, 30)
    if plus:  # steps of 48 // 2 // 3 = 8 and 48 // 7 // 3 = 2, whose last would be 46
        on_grid = [{*range(0, 47, 8)}, set(), {*range(0, 47, 2)}]
        numbers = [len(grid | first) for grid, first in zip(on_grid, ({5, 40}, set(), {*range(7)}), strict=True)]
    assert kept.valid.sum(dim=1).tolist() == [number + 1 for number in numbers]
    for view in range(3):
        alone = PruMerge(plus, adaptive=True).encode(views_of_one(views, view), 30)
        assert alone.valid[0].tolist() == kept.valid[view].tolist()
        torch.testing.assert_close(alone.values[0, : numbers[view] + 1], kept.values[view, : numbers[view] + 1])
        assert kept.slots[view, : numbers[view] + 1].tolist() == sorted(kept.slots[view, : numbers[view] + 1].tolist())


def views_of_one(views: Views, view: int) -> Views:
    part = slice(view, view + 1)
    return Views(
        views.pixels[part],
        views.features[part],
        {},
        views.grid,
        views.project,
        None,
        {-1: views.keys[-1][part]},
        {-1: views.queries[-1][part]},
    )


@pytest.mark.parametrize("plus", [False, True])
def test_a_bound_below_the_outliers_keeps_the_first_of_them(plus):
    logits = torch.zeros(1, 48)
    logits[0, :7] = torch.arange(10.0, 3, -1)
    kept = PruMerge(plus, adaptive=True).encode(views_of(logits), 5)
    assert kept.valid.all()
    assert kept.into[0, :4].tolist() == [0, 1, 2, 3]
    assert kept.slots[0].tolist() == [0, 1, 2, 3, 4]


def test_the_step_of_the_grid_is_1_where_nearly_a_quarter_stands_out():
    logits = torch.zeros(1, 40)
    logits[0, :36:4] = torch.arange(9, 0, -1.0) + 3
    kept = PruMerge(plus=True, adaptive=True).encode(views_of(logits), 30)
    assert kept.valid.all()
    first = list(range(0, 36, 4))
    others = [patch for patch in range(40) if patch not in first]
    assert kept.into[0, first + others[:20]].tolist() == list(range(29))
    assert (kept.into[0, others[20:]] == 29).all()


def test_a_tower_without_cls_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^method 'prumerge': expected a vision encoder with a \[CLS\] token, got one"
    ):
        vscan.apply(tiny_qwen(), "prumerge", 0.5)
