"""VisionZip (arXiv 2412.04467, CVPR 2025): [CLS] and the tokens it attends to most, and a few means of all others."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..select.scan import top
from .base import Kept, Method, Needs, Views


@torch.no_grad()
def select(scores: Tensor, keys: Tensor, num_dominant: int, num_contextual: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches stay, and where the others go.

    Every floor(|R| / M)-th of the rest R, from its first on, is a target; the others of R go to the target of largest
    cosine, the first one on ties.

    Args:
        scores: [V, N] fp32, attention of [CLS].
        keys: [V, N, d], what patches are compared by.
        num_dominant: patches that stay as they are.
        num_contextual: M, at most N - `num_dominant`.

    Returns:
        Dominant patches and targets in raster order, long [V, num_dominant] and [V, M]; and the target that each patch
        went to, a target to itself, long [V, N], -1 for dominant ones and where M is 0.
    """
    num_views, num_tokens = scores.shape
    order = top(scores, num_tokens)
    dominant = order[:, :num_dominant].sort(dim=1).values
    rest = order[:, num_dominant:].sort(dim=1).values
    group = torch.full_like(order, -1)
    if num_contextual == 0:
        return dominant, rest[:, :0], group
    stride = rest.shape[1] // num_contextual
    places = torch.arange(num_contextual, device=rest.device) * stride
    unit = normalize(keys.float().take_along_dim(rest.unsqueeze(-1), dim=1), dim=-1)
    nearest = (unit @ unit[:, places].transpose(1, 2)).argmax(dim=-1)
    # A target is in its own group, also where a twin of it is another target.
    nearest = nearest.scatter(
        1, places.expand(num_views, -1), torch.arange(num_contextual, device=rest.device).expand(num_views, -1)
    )
    return dominant, rest[:, places], group.scatter(1, rest, nearest)


def contextual(tokens: Tensor, targets: Tensor, group: Tensor) -> Tensor:
    """x_target + mean of what went to it: the sum of two, as published, no average of the group.

    Args:
        tokens: [V, N, C], any float dtype; sums are fp32.
        targets, group: of `select`.

    Returns:
        [V, M, C] in the dtype of `tokens`.
    """
    owns = tokens.take_along_dim(targets.unsqueeze(-1), dim=1).float()
    went = group.scatter(1, targets, -1)
    number = torch.arange(targets.shape[1], device=group.device).unsqueeze(1)
    members = (went.unsqueeze(1) == number).float()  # V M N
    means = members @ tokens.float() / members.sum(dim=-1, keepdim=True).clamp(min=1)
    return (owns + means).to(tokens.dtype)


@dataclass(frozen=True)
class VisionZip(Method):
    """Of T tokens M = floor(share T) are contextual; the others are [CLS] and the T - M - 1 patches it attends to most.

    A contextual token is x_t + mean of the patches that go to target t, by the cosine of their keys, mean over heads:
    published so, and twice as long as an average. Merging comes before the projector. The decoder sees [CLS], dominant
    patches in raster order, contextual tokens, numbered without gaps. On the grid they take, in that order, the slots
    of dominant patches and targets, and for [CLS] the first other patch.

    The published code takes (dominant, contextual) for an argument, cannot do without contextual tokens, and gives a
    picture of any resolution neither newlines nor unpadding, with [CLS] and contextual tokens of all tiles behind their
    patches; here a crop is a view like any other, packed as the model does it: what falls on padding is lost.

    Args:
        contextual_share: M of T; published are 30 of 192, 20 of 128, 10 of 64 and 5 of 32.
        layer: vision layer whose keys and [CLS] row are read.
    """

    contextual_share: Annotated[float, (0, 1)] = 0.15625
    layer: int = -2

    @property
    def needs(self) -> Needs:
        return Needs(rows=(self.layer,), keys=(self.layer,), cls=True)

    def encode(self, views: Views, num: int) -> Kept:
        num_contextual = min(int(num * self.contextual_share), num - 1)
        keys = views.keys[self.layer][:, 1:].unflatten(-1, (views.num_heads, -1)).float().mean(dim=2)
        dominant, targets, group = select(views.rows[self.layer], keys, num - num_contextual - 1, num_contextual)
        own = torch.cat((dominant, targets), dim=1)
        free = torch.ones_like(group).scatter_(1, own, 0).argmax(dim=1, keepdim=True)
        kept = views.features.take_along_dim(dominant.unsqueeze(-1), dim=1)
        values = torch.cat((views.cls.unsqueeze(1), kept, contextual(views.features, targets, group)), dim=1)
        into = torch.where(group < 0, -1, group + num - num_contextual)
        into = into.scatter(1, dominant, torch.arange(1, num - num_contextual, device=into.device).expand_as(dominant))
        return Kept(torch.cat((free, own), dim=1).sort(dim=1).values, views.project(values), into=into)
