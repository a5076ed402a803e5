"""SCOPE where recorded data says nothing: no attention, nothing left to cover, tiny grids."""

import pytest
import torch

from vscan.methods.base import Views
from vscan.methods.scope import SCOPE, select
from vscan.methods.shared.cover import cosines


def by_hand(similarity: torch.Tensor, saliency: list[float], num: int, alpha: float) -> list[int]:
    picks = []
    for _ in range(num):
        covered = similarity[picks].amax(dim=0).clamp(min=0) if picks else torch.zeros(len(similarity))
        scores = [
            -1.0 if token in picks else (row - covered).relu().sum().item() * saliency[token] ** alpha
            for token, row in enumerate(similarity)
        ]
        picks.append(scores.index(max(scores)))
    return picks


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("num", [1, 5, 11])
def test_coverage_times_saliency_as_by_hand(alpha, num):
    generator = torch.Generator().manual_seed(0)
    tokens, saliency = torch.randn(2, 12, 5, generator=generator), torch.rand(2, 12, generator=generator)
    similarity = cosines(tokens)
    found = select(similarity, saliency, num, alpha)
    assert found.tolist() == [
        by_hand(view, row.tolist(), num, alpha) for view, row in zip(similarity, saliency, strict=True)
    ]


def test_where_all_is_covered_attention_ranks():
    tokens = torch.eye(3)[[0, 0, 1, 0, 1, 0]].unsqueeze(0)
    saliency = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.5, 0.2]])
    assert select(cosines(tokens), saliency, 6).tolist() == [[1, 4, 2, 3, 5, 0]]


def test_tokens_without_any_attention_come_last_in_order():
    tokens = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    saliency = torch.tensor([[0.0, 1, 0, 0, 1, 0]])
    found = select(cosines(tokens), saliency, 6)[0].tolist()
    assert sorted(found[:2]) == [1, 4]
    assert found[2:] == [0, 2, 3, 5]


@pytest.mark.parametrize("num", [1, 3])
def test_a_line_of_tokens_is_a_grid_too(num):
    tokens = torch.eye(4).unsqueeze(0)
    views = Views(torch.zeros(1, 3, 2, 2), tokens, {-2: torch.tensor([[1.0, 4, 3, 2]])}, (1, 4), lambda rows: rows)
    assert SCOPE().encode(views, num).slots.tolist() == [[1, 2, 3][:num]]
