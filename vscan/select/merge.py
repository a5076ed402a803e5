"""Where dropped tokens go: each is averaged into the kept token that it is most similar to."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def merge(tokens: Tensor, kept: Tensor) -> Tensor:
    """Average every dropped token into its nearest kept token.

    x_merged = (sum of x_u over U_s + x_s) / (|U_s| + 1), U_s = the dropped tokens whose largest cosine similarity is
    with kept token s, the first one on ties (VScan, section 4). One matmul instead of a broadcast difference, and sums
    in fp32.

    Args:
        tokens: [V, N, D].
        kept: [V, T] long, distinct indices of the kept tokens.

    Returns:
        [V, T, D] in the dtype of `tokens`, in the order of `kept`.
    """
    num_views, num_kept = kept.shape
    full = tokens.float()
    rows = torch.arange(num_views, device=kept.device).unsqueeze(1)  # V 1
    # The length of a dropped token does not change which kept token is the nearest.
    unit = normalize(full[rows, kept], dim=-1, eps=1e-8)
    nearest = (full @ unit.transpose(1, 2)).argmax(dim=-1)  # V N
    # A kept token belongs to itself, also where a twin of it is kept.
    nearest = nearest.scatter(1, kept, torch.arange(num_kept, device=kept.device).expand(num_views, -1))
    group = (nearest + rows * num_kept).flatten()  # V*N
    sums = full.new_zeros(num_views * num_kept, full.shape[-1]).index_add_(0, group, full.flatten(0, 1))
    sizes = torch.zeros(num_views * num_kept, device=group.device).index_add_(0, group, torch.ones_like(group).float())
    return (sums / sizes.unsqueeze(1)).view(num_views, num_kept, -1).to(tokens.dtype)
