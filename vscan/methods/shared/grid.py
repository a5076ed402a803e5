"""What depends on where tokens lie in the grid: square padding, and smoothing."""

import torch
from torch import Tensor

GREY = 0.02  # of normalised pixels: the mean colour that squares are padded with, but for its rounding


def padding(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens that lie in the square padding of a picture: outer rows or columns of the grid that show nothing but the
    mean colour. bool [V, N]; none where `pixels` are no pictures [V, 3, H, W].
    """
    height, width = grid
    if pixels.ndim != 4 or pixels.shape[2] % height or pixels.shape[3] % width:
        return torch.zeros(len(pixels), height * width, dtype=torch.bool, device=pixels.device)
    blank = pixels.abs().amax(dim=1).unflatten(2, (width, -1)).unflatten(1, (height, -1)).amax(dim=(2, 4)) < GREY

    def outer(lines: Tensor) -> Tensor:
        """[V, n], those with no other line before them or behind them."""
        lines = lines.int()
        return (lines.cumprod(dim=1) + lines.flip(1).cumprod(dim=1).flip(1)) > 0

    return (outer(blank.all(dim=2)).unsqueeze(2) | outer(blank.all(dim=1)).unsqueeze(1)).flatten(1)


def smoothed(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """A Gaussian of 3 x 3 and sigma 1 over the grid, mirrored at its border: [V, N] -> [V, N]."""
    kernel = torch.tensor([-0.5, 0.0, -0.5], device=weights.device).exp()
    kernel = kernel / kernel.sum()
    found = weights.unflatten(1, grid)
    for dim, side in ((1, grid[0]), (2, grid[1])):
        index = torch.arange(side, device=weights.device)
        before, after = (index - 1).abs(), side - 1 - (side - 2 - index).abs()
        parts = (found.index_select(dim, place.clamp(0, side - 1)) for place in (before, index, after))
        found = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return found.flatten(1)
