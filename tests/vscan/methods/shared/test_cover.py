"""Greedy choices against slow ones, and what happens where tokens repeat or run out."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from vscan.methods.shared.cover import cosines, cover, farthest


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_cover(nearness: torch.Tensor, num: int) -> list[int]:
    """One view, with nothing kept from round to round."""
    picks = []
    for _ in range(num):
        covered = nearness[picks].amax(dim=0).clamp(min=0) if picks else torch.zeros(nearness.shape[1])
        gains = [-1.0 if token in picks else (row - covered).relu().sum().item() for token, row in enumerate(nearness)]
        picks.append(gains.index(max(gains)))
    return picks


def slow_farthest(distances: torch.Tensor, num: int) -> list[int]:
    size = len(distances)
    far = [min(distances[i, j].item() for j in range(size) if j != i) for i in range(size)]
    picks = [far.index(max(far))]
    while len(picks) < num:
        far = [-1.0 if i in picks else min(distances[i, j].item() for j in picks) for i in range(size)]
        picks.append(far.index(max(far)))
    return picks


@pytest.mark.parametrize("num", [1, 2, 7, 30])
def test_every_view_is_chosen_as_by_hand(num):
    tokens = random(3, 30, 6)
    similarity, wide = cosines(tokens), random(3, 30, 11)
    assert cover(similarity, num).tolist() == [slow_cover(view, num) for view in similarity]
    assert cover(wide, num).tolist() == [slow_cover(view, num) for view in wide]
    assert farthest(1 - similarity, num).tolist() == [slow_farthest(1 - view, num) for view in similarity]


def test_what_is_covered_ranks_no_token_before_an_earlier_one():
    assert cover(torch.ones(1, 4, 3), 4).tolist() == [[0, 1, 2, 3]]
    assert cover(-torch.ones(1, 3, 3), 3).tolist() == [[0, 1, 2]]
    nearness = torch.tensor([[[0.0, 0, 1], [1, 1, 0], [1, 1, 0], [0, 0, 2]]])
    assert cover(nearness, 4).tolist() == [[1, 3, 0, 2]]


def test_a_score_may_rank_otherwise_and_no_token_comes_twice():
    assert cover(torch.ones(1, 4, 3), 4, lambda gains: torch.arange(4.0)).tolist() == [[3, 2, 1, 0]]


def test_rows_that_repeat_are_at_no_distance_and_come_last_in_order():
    rows = random(4, 8)
    tokens = rows[[2, 0, 2, 1, 0, 3, 2]].unsqueeze(0)
    found = farthest(1 - cosines(tokens), 7)[0].tolist()
    assert {tuple(tokens[0, token].tolist()) for token in found[:4]} == {tuple(row.tolist()) for row in rows}
    assert found[4:] == sorted(found[4:])
    assert sorted(found) == list(range(7))
    assert farthest(torch.zeros(2, 5, 5), 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_cosines_are_float32_and_exactly_1_for_equal_directions():
    tokens = torch.cat((random(1, 5, 7), 3 * random(1, 5, 7)), dim=1)
    found = cosines(tokens.double())
    assert found.dtype == torch.float32
    assert (found[0, :5, 5:].diagonal() == 1).all()
    assert (found[0].diagonal() == 1).all()
    torch.testing.assert_close(found, cosine_similarity(tokens[:, None], tokens[:, :, None], dim=-1))
    assert cosines(torch.zeros(1, 2, 3)).tolist() == [[[0, 0], [0, 0]]]
