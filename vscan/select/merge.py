"""Where dropped tokens go: each is averaged into the kept token that it is most similar to."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def merge(tokens: Tensor, kept: Tensor) -> Tensor:
    """Average every dropped token into its nearest kept token.

    x_merged = (sum of x_u over U_s + x_s) / (|U_s| + 1), U_s = the dropped tokens whose largest cosine similarity is
    with kept token s, the first one on ties (VScan, section 4). One matmul instead of a broadcast difference, and sums
    in fp32, of the same bits every time.

    Args:
        tokens: [V, N, D].
        kept: [V, T] long, distinct indices of the kept tokens.

    Returns:
        [V, T, D] in the dtype of `tokens`, in the order of `kept`.
    """
    full, number = tokens.float(), torch.arange(kept.shape[1], device=kept.device)
    # The length of a dropped token does not change which kept token is the nearest.
    unit = normalize(full.take_along_dim(kept.unsqueeze(-1), dim=1), dim=-1, eps=1e-8)
    nearest = (full @ unit.transpose(1, 2)).argmax(dim=-1)  # V N
    # A kept token belongs to itself, also where a twin of it is kept.
    nearest = nearest.scatter(1, kept, number.expand_as(kept))
    sums, sizes = (sums_in_order if full.device.type == "cpu" else sums_by_product)(full, nearest, len(number))
    return (sums / sizes.unsqueeze(-1)).to(tokens.dtype)


def sums_in_order(tokens: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Sums [V, T, D] and sizes [V, T] of groups of tokens [V, N, D], whose numbers are long [V, N]; for a CPU."""
    num_views, _, width = tokens.shape
    place = (groups + num_groups * torch.arange(num_views, device=groups.device).unsqueeze(1)).flatten()
    sums = tokens.new_zeros(num_views * num_groups, width).index_add_(0, place, tokens.flatten(0, 1))
    sizes = tokens.new_zeros(num_views * num_groups).index_add_(0, place, tokens.new_ones(1).expand(len(place)))
    return sums.view(num_views, num_groups, width), sizes.view(num_views, num_groups)


def sums_by_product(tokens: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The same by a product, because a GPU adds by index in any order, and not to the same bits."""
    members = (groups.unsqueeze(1) == torch.arange(num_groups, device=groups.device).unsqueeze(1)).to(tokens.dtype)
    return members @ tokens, members.sum(dim=-1)  # V T N
