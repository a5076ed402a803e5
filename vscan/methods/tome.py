"""ToMe (arXiv 2210.09461, ICLR 2023): in every block of the vision encoder, tokens with similar keys become one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from ..compat import clip_parts, projections
from ..select.attention import attends_over_time, device_of, over_time, split_heads
from ..select.scan import top
from .base import Kept, Method, Needs, Tower, Views


def merges(num_tokens: int, num: int, depth: int) -> list[int]:
    """How many tokens each of `depth` blocks merges away, so that `num` of `num_tokens` are left: equally many, and one
    more in the first blocks where that does not divide; what is beyond half of the tokens that arrive at the last
    blocks is spread over the earlier ones. ValueError for fewer tokens than halving in every block leaves."""
    if num < (least := -(-num_tokens // 2**depth)):
        raise ValueError(f"ToMe: expected at least {least} of {num_tokens} tokens behind {depth} blocks, got {num}")
    counts, left = [], num
    for index in reversed(range(depth)):
        counts.append(min((num_tokens - left) // (index + 1), left))
        left += counts[-1]
    return counts[::-1]


def match(metric: Tensor, num_merged: int) -> Tensor:
    """Bipartite soft matching of the tokens at even places (A, with [CLS]) with those at odd places (B).

    The partner of a is argmax_b cos(a, b), the first one on ties. The `num_merged` of A that are most like their
    partners go into them, several into one where it comes so; [CLS] never does, and nothing goes into it.

    Args:
        metric: [V, t, d] fp32, what tokens are compared by, [CLS] first.
        num_merged: at most (t - 1) // 2.

    Returns:
        Long [V, t], where each token goes in the new order: what stays of A in its order, then B in its order.
    """
    unit = normalize(metric, dim=-1)
    nearness, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
    nearness[:, 0].fill_(-torch.inf)
    stays = torch.ones_like(partner, dtype=torch.bool).scatter_(1, top(nearness, num_merged), False)
    first_b = partner.shape[1] - num_merged
    into = torch.empty(metric.shape[:2], dtype=torch.long, device=metric.device)
    into[:, ::2] = torch.where(stays, stays.cumsum(dim=1) - 1, first_b + partner)
    into[:, 1::2] = torch.arange(first_b, metric.shape[1] - num_merged, device=metric.device)
    return into


def merge(hidden: Tensor, sizes: Tensor, into: Tensor, num_left: int) -> tuple[Tensor, Tensor]:
    """Mean of what goes to each place, weighted by sizes: x_b = sum s_a x_a / sum s_a, s_b = sum s_a.

    Args:
        hidden: [V, t, C], any float dtype; sums are fp32.
        sizes: [V, t] fp32, original tokens in each.
        into, num_left: of `match`, and t less what is merged away.

    Returns:
        [V, num_left, C] in the dtype of `hidden`, and their sizes [V, num_left] fp32.
    """
    num_views, _, width = hidden.shape
    places = into.unsqueeze(-1).expand(-1, -1, width)
    sums = sizes.new_zeros(num_views, num_left, width).scatter_add_(1, places, hidden.float() * sizes.unsqueeze(-1))
    totals = sizes.new_zeros(num_views, num_left).scatter_add_(1, into, sizes)
    return (sums / totals.unsqueeze(-1)).to(hidden.dtype), totals


def members_over_time(layer: nn.Module, hidden: Tensor, into: Tensor) -> Tensor:
    """What a video tower's block does before the attention within frames, which goes place by place: a token stands at
    the places of all its members, and becomes the mean of what they become.

    Args:
        hidden: [V, t, C].
        into: long [V, T], the token that stands for each place.
    """
    members = over_time(layer, hidden.take_along_dim(into.unsqueeze(-1), dim=1))
    return merge(members, torch.ones_like(into, dtype=torch.float32), into, hidden.shape[1])[0]


@dataclass(frozen=True)
class ToMe(Method):
    """Merging between attention and MLP of every block that leads to the features, by the blocks' keys.

    How it meets LLaVA is our own choice, for none was published: equal counts in all these blocks, [CLS] dropped behind
    them, tokens projected in ToMe's order and numbered without gaps, their sizes not told to the decoder. On the grid
    they take, in that order, the first patches of all groups: where a model unpads crops, those on padding are lost.

    Args:
        proportional: attention counts a token as often as it has members: log(size) is added to its logits.
    """

    proportional: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(cls=True)

    def check(self, tower: Tower) -> None:
        merges(tower.num_tokens, tower.num, tower.depth)  # views of one size: a tower with [CLS]

    def block(self, layer: nn.Module, hidden: Tensor, state: dict, index: int, depth: int, num: int) -> Tensor:
        """x' = x + Attn(LN(x)); x'' = merge(x'), by the mean of the keys over heads; x'' + MLP(LN(x''))."""
        norm, to_query, to_key, head_dim, scale = projections(layer)
        to_value, to_output, second_norm, mlp = clip_parts(layer)
        hidden = hidden.to(device_of(layer))  # its parts are called, not itself, which would see to that
        if index == 0:
            num_views, length, _ = hidden.shape
            state["merges"] = merges(length - 1, num, depth)
            state["into"] = torch.arange(length, device=hidden.device).expand(num_views, -1)
            state["sizes"] = torch.ones(num_views, length, device=hidden.device)
        into, sizes = (state[name].to(hidden.device) for name in ("into", "sizes"))
        if attends_over_time(layer):
            hidden = members_over_time(layer, hidden, into)
        normed = norm(hidden)
        query, key, value = (split_heads(make(normed), head_dim) for make in (to_query, to_key, to_value))
        # Sizes are all 1 before the first merge.
        bias = sizes.log().to(query.dtype)[:, None, None] if self.proportional and index > 0 else None
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        hidden = hidden + to_output(attended.transpose(1, 2).flatten(2))
        num_merged = state["merges"][index]
        if num_merged > 0:
            step = match(key.float().mean(dim=1), num_merged)
            hidden, state["sizes"] = merge(hidden, sizes, step, hidden.shape[1] - num_merged)
            state["into"] = step.gather(1, into)
        return hidden + mlp(second_norm(hidden))

    def encode(self, views: Views, num: int) -> Kept:
        num_views, num_tokens = len(views.features), views.grid[0] * views.grid[1]
        into = views.state["into"][:, 1:].to(views.features.device) - 1
        patches = torch.arange(num_tokens, device=into.device).expand(num_views, -1)
        first = torch.full_like(patches[:, :num], num_tokens).scatter_reduce(1, into, patches, "amin")
        return Kept(first.sort(dim=1).values, views.project(views.features), into=into)
