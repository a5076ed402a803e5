"""Downsample: average pooling of the token grid, the baseline that selects nothing."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ..select.remembered import remembered
from .base import Kept, Method, Views


def bins(side: int, num: int) -> list[tuple[int, int]]:
    """Cut a side into `num` bins (start, end) as adaptive average pooling does: neighbours may share one token."""
    return [(i * side // num, -(-(i + 1) * side // num)) for i in range(num)]


# Few entries: one holds num * N floats, and images of free size come in many grids.
@remembered(maxsize=16)
def pooling(grid: tuple[int, int], num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cut a grid into exactly `num` cells, and say what each averages and where it lies.

    About sqrt(num * height / width) rows of cells, so that cells are near to squares; the cells are spread over the
    rows as evenly as possible, and each row is cut along the width on its own. Where both sides divide it is plain
    adaptive average pooling (64 of 24 x 24: 8 x 8 cells).

    Args:
        grid: (height, width) in tokens.
        num: cells, in [1, height * width].

    Returns:
        Weights [num, height * width] fp32, each row the mean over one rectangle of tokens, and slots [num] long,
        ascending: the token in the middle of each rectangle (of two, the earlier one).
    """
    height, width = grid
    # No row may get more cells than it has columns, nor none.
    num_rows = max(-(-num // width), min(round(sqrt(num * height / width)), num))
    slots = []
    weights = torch.zeros(num, height, width)
    for i, (top, bottom) in enumerate(bins(height, num_rows)):
        for left, right in bins(width, (i + 1) * num // num_rows - i * num // num_rows):
            weights[len(slots), top:bottom, left:right] = 1 / ((bottom - top) * (right - left))
            slots.append((top + bottom - 1) // 2 * width + (left + right - 1) // 2)
    return weights.flatten(1).to(device), torch.tensor(slots, device=device)


@dataclass(frozen=True)
class Downsample(Method):
    """Average pooling to exactly the number of tokens asked for, whatever the image shows.

    Features are pooled before the projector, in fp32: the projector then sees a coarser grid of the encoder's own
    features, and runs on fewer tokens.
    """

    def encode(self, views: Views, num: int) -> Kept:
        weights, slots = pooling(views.grid, num, views.features.device)
        pooled = weights @ views.features.float()  # V num C
        return Kept(slots.repeat(len(pooled), 1), views.project(pooled.to(views.features.dtype)))
