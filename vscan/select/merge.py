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
    # A product, because a GPU adds by index in any order, and not to the same bits.
    members = (nearest.unsqueeze(1) == number.unsqueeze(1)).float()  # V T N
    return (members @ full / members.sum(dim=-1, keepdim=True)).to(tokens.dtype)
