"""Choosing tokens one after another: those that cover all others best, or lie farthest from what is chosen.

T rounds of a few operations on one [V, N, R] array, batched over views, in fp32, without a device sync.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

ALIKE = 1e-6  # two tokens whose cosine is as near to 1 as this are the same: the rest is rounding


def cosines(tokens: Tensor) -> Tensor:
    """cos(x_i, x_j) of the tokens of every view, in fp32: [V, N, C] of any float dtype -> [V, N, N]."""
    unit = normalize(tokens.float(), dim=-1)
    found = unit @ unit.transpose(1, 2)
    return found.masked_fill_(found > 1 - ALIKE, 1)


@torch.no_grad()
def cover(nearness: Tensor, num: int, score: Callable[[Tensor], Tensor] = lambda gains: gains) -> Tensor:
    """Facility location, greedily: f(S) = sum_r max(0, max_{j in S} M_jr).

    Every round takes the token of largest score of gain_j = sum_r max(0, M_jr - b_r), b_r being the best of what is
    chosen, 0 at first; the earlier token on ties, no token twice.

    Args:
        nearness: M, fp32 [V, N, R], how well each token covers each of R things.
        num: tokens to choose, at most N.
        score: from gains [V, N] to what ranks tokens, -inf for none.

    Returns:
        Long [V, num], in the order of choice.
    """
    num_views, num_tokens, width = nearness.shape
    first_row = torch.arange(num_views, device=nearness.device) * num_tokens
    covered, more = nearness.new_zeros(num_views, width), torch.empty_like(nearness)
    taken = nearness.new_zeros(num_views, num_tokens)
    picks = []
    for _ in range(num):
        torch.sub(nearness, covered.unsqueeze(1), out=more).relu_()
        picks.append((score(more.sum(dim=-1)) + taken).argmax(dim=-1))
        taken.scatter_(1, picks[-1].unsqueeze(1), -torch.inf)
        covered = torch.maximum(covered, nearness.flatten(0, 1).index_select(0, picks[-1] + first_row))
    return torch.stack(picks, dim=1)


@torch.no_grad()
def farthest(distances: Tensor, num: int) -> Tensor:
    """Max-min diversity, greedily: first the token that is farthest from its nearest other one, then every round the
    one that is farthest from what is chosen, the earlier one on ties; no token twice.

    Args:
        distances: fp32 [V, N, N], symmetric.
        num: tokens to choose, at most N.

    Returns:
        Long [V, num], in the order of choice.
    """
    num_views, num_tokens, _ = distances.shape
    first_row = torch.arange(num_views, device=distances.device) * num_tokens
    itself = torch.eye(num_tokens, dtype=torch.bool, device=distances.device)
    picks = [distances.masked_fill(itself, torch.inf).amin(dim=-1).argmax(dim=-1)]
    nearest = torch.full_like(distances[:, 0], torch.inf)
    for _ in range(num - 1):
        nearest = torch.minimum(nearest, distances.flatten(0, 1).index_select(0, picks[-1] + first_row))
        nearest.scatter_(1, picks[-1].unsqueeze(1), -torch.inf)
        picks.append(nearest.argmax(dim=-1))
    return torch.stack(picks, dim=1)
