"""One budget for the crops of a picture: how it is shared out among them, and what each then keeps."""

import torch
from torch import Tensor

from ...select.scan import top
from ..base import Kept


def share_out(scores: Tensor, seen: Tensor, quotas: Tensor, turns: Tensor, num: int) -> Kept:
    """The best `num` tokens of some views, of each as many as its quota says, and what is over one by one in turns.

    Args:
        scores: [V, N] fp32.
        seen: bool [V, N], tokens that may be kept.
        quotas: long [V], with a sum of at most `num`.
        turns: long [V], in which order views get one more, again and again, where quotas or what is seen of a view do
            not come to `num`; one whose turn is V * N gets none before the others are exhausted.

    Returns:
        `Kept` of one group: slots [1, num] in [0, V * N), not valid where fewer are seen.
    """
    (num_views, num_tokens), device = scores.shape, scores.device
    order = top(scores.masked_fill(~seen, -torch.inf), num_tokens)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(num_tokens, device=device).expand(num_views, -1))
    beyond = rank - quotas.unsqueeze(1)
    turn = torch.where(beyond < 0, -1, beyond * num_views + turns.unsqueeze(1))
    turn = turn.masked_fill(~seen, torch.iinfo(torch.long).max).flatten()
    kept = torch.zeros_like(turn).scatter_(0, turn.sort(stable=True).indices[:num], 1) * seen.flatten()
    slots = top(kept, num)  # those kept in ascending order, and some others where they are fewer
    return Kept(slots.unsqueeze(0), valid=kept[slots].bool().unsqueeze(0))


def quotas(weights: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """How `num` tokens are shared out among the views of a picture: in proportion to their weights, floored, at least
    one each.

    Returns:
        Shares, long [V], and each view's place in the order in which they get one more: by what the floor took.
    """
    wanted = weights.sum(dim=1) / weights.sum() * num
    shares = wanted.long().clamp(min=1)
    too_many = (shares.sum() - num).clamp(min=0)
    largest = torch.arange(len(shares), device=shares.device) == shares.argmax()
    turns = (wanted - wanted.floor()).sort(descending=True, stable=True).indices.argsort()
    return (shares - too_many * largest).clamp(min=0), turns
