"""Downsample averages rectangles that cover the grid, exactly as many as asked for."""

import pytest
import torch
from helpers import close, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool2d

from vscan.methods import method_class
from vscan.methods.base import Needs, Views
from vscan.methods.downsample import Downsample, pooling

CPU = torch.device("cpu")


def views_of(features: torch.Tensor, grid: tuple[int, int], project=lambda tokens: tokens) -> Views:
    return Views(torch.zeros(len(features), 3, 2, 2), features, {}, grid, project)


def random_features(num_views: int, num_tokens: int, width: int = 8) -> torch.Tensor:
    return torch.randn(num_views, num_tokens, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("grid", "num", "cells"),
    [
        ((24, 24), 64, (8, 8)),
        ((24, 24), 144, (12, 12)),
        ((24, 24), 25, (5, 5)),
        ((12, 24), 32, (4, 8)),
        ((7, 5), 1, (1, 1)),
    ],
)
def test_a_rectangle_of_cells_equals_adaptive_average_pooling(grid, num, cells):
    features = random_features(3, grid[0] * grid[1])
    values, _ = encoded(Downsample(), views_of(features, grid), num)
    expected = adaptive_avg_pool2d(features.transpose(1, 2).unflatten(-1, grid), cells).flatten(2).transpose(1, 2)
    close(values, expected, 1e-5)


def test_slots_of_even_cells_are_their_central_patches():
    weights, slots = pooling((24, 24), 64, CPU)
    assert slots.view(8, 8)[0].tolist() == [25 + 3 * i for i in range(8)]
    assert slots.view(8, 8)[:, 0].tolist() == [25 + 72 * i for i in range(8)]
    assert weights[0].nonzero().squeeze(1).tolist() == [0, 1, 2, 24, 25, 26, 48, 49, 50]


def test_cells_that_fill_no_rectangle_are_spread_over_the_rows():
    # 7 of 6 x 6: sqrt(7) is nearest to 3 rows, of 2, 2 and 3 cells.
    _, slots = pooling((6, 6), 7, CPU)
    assert slots.div(6, rounding_mode="floor").tolist() == [0, 0, 2, 2, 4, 4, 4]
    assert slots.remainder(6).tolist() == [1, 4, 1, 4, 0, 2, 4]


@settings(deadline=None, derandomize=True, max_examples=120)
@given(data=st.data(), height=st.integers(1, 30), width=st.integers(1, 30))
def test_any_number_of_cells_covers_any_grid_and_slots_ascend(data, height, width):
    num = data.draw(st.integers(1, height * width))
    weights, slots = pooling((height, width), num, CPU)
    assert weights.shape == (num, height * width)
    assert slots.shape == (num,)
    assert slots.dtype == torch.long
    assert (slots.diff() > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(num))
    assert (weights > 0).any(dim=0).all()
    assert weights[torch.arange(num), slots].min() > 0  # a slot lies inside its cell
    # Each cell is the mean over one rectangle.
    cells = (weights > 0).view(num, height, width)
    area = cells.any(dim=2).sum(dim=1) * cells.any(dim=1).sum(dim=1)
    assert area.equal(cells.sum(dim=(1, 2)))
    torch.testing.assert_close(weights.max(dim=1).values, 1 / area)


@pytest.mark.parametrize("grid", [(24, 24), (12, 36)])
@pytest.mark.parametrize("num", [61, 127, 193, 431])
def test_cells_of_a_prime_number_are_near_to_squares(grid, num):
    weights, _ = pooling(grid, num, CPU)
    cells = (weights > 0).view(num, *grid)
    height, width = cells.any(dim=2).sum(dim=1), cells.any(dim=1).sum(dim=1)
    assert (height - width).abs().max() <= 2
    assert (height - width).float().mean().abs() <= 0.75


@pytest.mark.parametrize("num", [5, 64, 127])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_features_stay_constant_in_their_dtype(num, dtype):
    values, slots = encoded(Downsample(), views_of(torch.full((2, 576, 4), 3.25, dtype=dtype), (24, 24)), num)
    assert values.dtype == dtype
    assert values.shape == (2, num, 4)
    assert slots.shape == (2, num)
    torch.testing.assert_close(values, torch.full_like(values, 3.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_fp32_and_rounded_once(dtype):
    features = random_features(2, 576).to(dtype)
    values, _ = encoded(Downsample(), views_of(features, (24, 24)), 64)
    assert values.equal(encoded(Downsample(), views_of(features.float(), (24, 24)), 64)[0].to(dtype))


def test_a_batch_equals_its_views_alone():
    features = random_features(5, 576, 64)
    values, slots = encoded(Downsample(), views_of(features, (24, 24)), 127)
    for view in range(5):
        alone = encoded(Downsample(), views_of(features[view : view + 1], (24, 24)), 127)
        close(values[view], alone[0][0], 1e-5)
        assert slots[view].equal(alone[1][0])


def test_the_projector_sees_pooled_features():
    seen = []

    def project(tokens):
        seen.append(tokens)
        return tokens.square()

    features = random_features(2, 36)
    values, _ = encoded(Downsample(), views_of(features, (6, 6), project), 4)
    quarters = features.view(2, 2, 3, 2, 3, 8).transpose(2, 3)  # V, cell row, cell column, row, column, C
    expected = quarters.mean(dim=(3, 4)).flatten(1, 2)
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(values, expected.square())


def test_a_caller_may_write_into_the_slots():
    views = views_of(random_features(2, 36), (6, 6))
    expected = encoded(Downsample(), views, 5)[1].clone()
    encoded(Downsample(), views, 5)[1].zero_()
    assert encoded(Downsample(), views, 5)[1].equal(expected)


def test_a_table_made_in_inference_mode_serves_gradients_later():
    features = random_features(1, 35)
    with torch.inference_mode():
        encoded(Downsample(), views_of(features, (5, 7)), 6)
    features.requires_grad_()
    encoded(Downsample(), views_of(features, (5, 7)), 6)[0].sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(6.0 * 8))


def test_nothing_is_read_back():
    # A meta tensor has no values: anything that would wait for the device fails on it.
    values, slots = encoded(Downsample(), views_of(torch.empty(2, 36, 8, device="meta"), (6, 6)), 5)
    assert values.shape == (2, 5, 8)
    assert slots.shape == (2, 5)


def test_it_is_found_by_its_name_and_needs_no_attention():
    assert method_class("downsample") is Downsample
    assert Downsample().needs == Needs()
