"""VisionZip where recorded data says nothing: tiny budgets, twins, the slots of its tokens, refusals."""

import pytest
import torch
from qwen_helpers import tiny_qwen

import vscan
from vscan.methods.base import Views
from vscan.methods.visionzip import VisionZip, contextual, select


def views_of(num_tokens: int = 12, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 1 + num_tokens, 4, generator=generator)
    rows = {-2: torch.arange(num_tokens, 0, -1.0).unsqueeze(0)}  # the first attend to most
    keys = {-2: torch.randn(1, 1 + num_tokens, 6, generator=generator)}
    return Views(
        states, states[:, 1:], rows, (1, num_tokens), lambda tokens: 2 * tokens, states[:, 0], keys, num_heads=3
    )


@pytest.mark.parametrize(("num", "num_contextual"), [(1, 0), (6, 0), (7, 1), (11, 1)])
def test_cls_comes_first_then_the_best_then_contextual_tokens(num, num_contextual):
    views = views_of()
    kept = VisionZip().encode(views, num)
    num_dominant = num - 1 - num_contextual
    assert kept.values.shape == (1, num, 4)
    assert kept.values[0, 0].tolist() == (2 * views.cls[0]).tolist()
    assert kept.values[0, 1 : 1 + num_dominant].tolist() == (2 * views.features[0, :num_dominant]).tolist()
    if num_contextual:  # one target, the first that is left, takes all others
        rest = views.features[0, num_dominant:]
        torch.testing.assert_close(kept.values[0, -1], 2 * (rest[0] + rest[1:].mean(dim=0)))
        assert kept.into[0].tolist() == [*range(1, 1 + num_dominant), *[num - 1] * (12 - num_dominant)]
    else:
        assert kept.into[0].tolist() == [*range(1, 1 + num_dominant), *[-1] * (12 - num_dominant)]
    assert kept.slots[0].tolist() == list(range(num))


def test_all_tokens_but_cls_can_be_contextual():
    views = views_of()
    kept = VisionZip(1.0).encode(views, 5)  # targets 0, 3, 6, 9 of 12; [CLS] takes the first free slot, 1
    assert kept.slots[0].tolist() == [0, 1, 3, 6, 9]
    assert {kept.into[0, token].item() for token in (0, 3, 6, 9)} == {1, 2, 3, 4}
    assert kept.into[0, [0, 3, 6, 9]].tolist() == [1, 2, 3, 4]


def test_a_target_keeps_itself_and_gives_twins_to_the_first():
    keys = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [0, 1]]])
    dominant, targets, group = select(torch.zeros(1, 4), keys, 0, 2)
    assert (dominant.tolist(), targets.tolist(), group.tolist()) == ([[]], [[0, 2]], [[0, 0, 1, 0]])
    tokens = torch.tensor([[[1.0], [2], [4], [8]]])
    assert contextual(tokens, targets, group).tolist() == [[[1 + 5], [4]]]


def test_keys_are_means_over_heads():
    """Head by head patch 1 is like patch 2, on average like patch 0."""
    views = views_of(4)
    views.rows[-2] = torch.tensor([[0.0, 0, 0, 1]])
    views.keys[-2] = torch.tensor([[[0.0] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 3, -3, 0, 0], [0.0] * 6]])
    _, targets, group = select(views.rows[-2], views.keys[-2][:, 1:].unflatten(-1, (3, -1)).mean(dim=2), 1, 2)
    assert (targets.tolist(), group.tolist()) == ([[0, 1]], [[0, 1, 0, -1]])


def test_a_tower_without_cls_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^method 'visionzip': expected a vision encoder with a \[CLS\] token, got on"
    ):
        vscan.apply(tiny_qwen(), "visionzip", 0.5)
