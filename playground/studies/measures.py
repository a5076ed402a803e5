"""Numbers about attention maps: is it on things, how far does it reach, where does it lie. Arrays in, floats out."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from vscan.compat import projections
from vscan.select.attention import split_heads


def auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive patch has a larger score than a negative one; ties count half.

    Args:
        scores: [N].
        positive, negative: bool [N].

    Returns:
        In [0, 1]; nan where either is empty.
    """
    if not positive.any() or not negative.any():
        return math.nan
    ordered = np.sort(scores[negative])
    below = np.searchsorted(ordered, scores[positive], "left")
    not_above = np.searchsorted(ordered, scores[positive], "right")
    return float((below + not_above).mean() / 2 / len(ordered))


def patch_distances(grid: tuple[int, int]) -> Tensor:
    """Distances between the centres of patches: float32 [N, N], in patches."""
    height, width = grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    return torch.cdist(places, places)


@torch.no_grad()
def attention_distance(layer: nn.Module, hidden: Tensor, distances: Tensor) -> Tensor:
    """How far patches look in a CLIP layer: sum_j a_ij |i - j| / sum_j a_ij, mean over patches i and heads.

    Both are patches; what goes to [CLS] is left out.

    Args:
        layer: a CLIP encoder layer.
        hidden: its input [V, 1 + N, C].
        distances: from `patch_distances`.

    Returns:
        [V] fp32, in patches.
    """
    norm, to_query, to_key, head_dim, scale = projections(layer)
    normed = norm(hidden)
    queries = split_heads(to_query(normed[:, 1:]), head_dim).float()
    keys = split_heads(to_key(normed[:, 1:]), head_dim).float()
    # The map of one view at a time: those of a batch would be gigabytes. Without [CLS] among the keys the softmax is
    # the layer's own, renormalised over the patches.
    rows = [(q @ k.transpose(1, 2) * scale).softmax(-1) for q, k in zip(queries, keys, strict=True)]
    return torch.stack([(row * distances.to(row)).sum(-1).mean() for row in rows])


def shares_of_rows(attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """How attention to patches is spread over the rows of the grid.

    Args:
        attention: [..., N], not negative.

    Returns:
        [..., height], sums to 1.
    """
    rows = attention.reshape(*attention.shape[:-1], *grid).sum(-1)
    return rows / rows.sum(-1, keepdims=True)


def share_on(attention: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Share of the attention [..., N] that lies on some patches, bool [N]: [...]."""
    return attention[..., patches].sum(-1) / attention.sum(-1)
