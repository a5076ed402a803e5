"""LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388, ICCV 2025): tokens that stand out in attention, each with a little
of what is most like it, and one token for all that is dropped."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..select.scan import top
from .base import Kept, Method, Needs, Views

CLUSTER = 32  # patches that go into a kept one, as published


def attention(query: Tensor, keys: Tensor) -> Tensor:
    """a = softmax(q_CLS k^T / sqrt(C)) over all keys, one head of full width; the column of [CLS] is then left out.

    Args:
        query: [V, C].
        keys: [V, 1 + N, C].

    Returns:
        [V, N] fp32.
    """
    logits = (keys.float() @ query.float().unsqueeze(-1)).squeeze(-1) / keys.shape[-1] ** 0.5
    return logits.softmax(dim=-1)[:, 1:]


def outliers(scores: Tensor) -> Tensor:
    """How many tokens of each view have a_j > Q3 + 1.5 (Q3 - Q1), of its own quartiles: long [V, 1]."""
    first, third = scores.quantile(torch.tensor([0.25, 0.75], device=scores.device), dim=-1, keepdim=True)
    return (scores > third + 1.5 * (third - first)).sum(dim=-1, keepdim=True)


def merged(tokens: Tensor, scores: Tensor, keys: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """y_i = x_i + sum a_j x_j over the 32 patches j whose keys are most like i's, and last e = sum a_j x_j over all
    dropped ones: with raw attention, as published, so that both sums are small.

    Args:
        tokens: [V, N, C], any float dtype; sums are fp32.
        scores: a, fp32 [V, N].
        keys: [V, N, C].
        kept: long [V, K]; clusters may share patches, and hold kept ones.
        dropped: bool [V, N].

    Returns:
        [V, K + 1, C] in the dtype of `tokens`.
    """
    full, unit = tokens.float(), normalize(keys.float(), dim=-1)
    nearness = unit.take_along_dim(kept.unsqueeze(-1), dim=1) @ unit.transpose(1, 2)
    nearest = top(nearness.scatter(2, kept.unsqueeze(-1), -torch.inf), min(CLUSTER, tokens.shape[1] - 1))
    weights = torch.cat((torch.zeros_like(nearness).scatter(2, nearest, 1), dropped.unsqueeze(1)), dim=1)
    sums = (weights * scores.unsqueeze(1)) @ full
    sums[:, :-1] += full.take_along_dim(kept.unsqueeze(-1), dim=1)
    return sums.to(tokens.dtype)


@dataclass(frozen=True)
class PruMerge(Method):
    """Of T tokens T - 1 are patches in descending attention, each with its cluster, and the last is for all dropped.

    The attention is that of [CLS] behind the features, as one head of full width. Merging comes before the projector.
    Tokens stay in that order, numbered without gaps: on the grid they take the slots of the kept patches in ascending
    order, and of the dropped one of most attention. A crop is a view like any other; what falls on padding is lost.

    No fixed budget was published for PruMerge+: that a quarter of T goes by attention and the rest is spread evenly
    over the other patches is our choice. The published code counts outliers over all pictures of a batch, keeps
    patches twice and loses others where its grid meets them, and stops with an error where there are no outliers or
    very many; here a view is counted alone, a patch is kept once, and PruMerge+ without outliers is PruMerge.

    Args:
        plus: PruMerge+: patches on an even grid stay beside those of most attention, in raster order behind them.
        adaptive: patches stay whose attention is an outlier, a_j > Q3 + 1.5 (Q3 - Q1), K of N, and with `plus` those
            on a grid of step max(1, N // K // 3); T is then the most that may stay.
        layer: vision layer whose [CLS] query and keys are read: the one behind the features.
    """

    plus: bool = False
    adaptive: bool = False
    layer: int = -1

    @property
    def needs(self) -> Needs:
        return Needs(keys=(self.layer,), cls=True)

    def chosen(self, scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """Which patches stay.

        Args:
            scores: fp32 [V, N].
            num: at most, fewer than N.

        Returns:
            Those that stay in their order, then others, long [V, num]; and how many stay, long [V, 1].
        """
        num_tokens = scores.shape[1]
        index = torch.arange(num_tokens, device=scores.device)
        by_attention = (num + 1) // 4 if self.plus else num
        first = outliers(scores) if self.adaptive else torch.full_like(index[:1], by_attention).expand(len(scores), 1)
        turn = top(scores, num_tokens).argsort(dim=1)
        is_first = turn < first
        turn = torch.where(is_first, turn, 3 * num_tokens)
        if self.plus and self.adaptive:
            on_grid = index % (num_tokens // first.clamp(min=1) // 3).clamp(min=1) == 0
            on_grid = on_grid & (index < num_tokens - 1) & (first > 0)
        else:  # the floors of i R / G, i = 0, ..., G - 1, among the R others in raster order
            rest, wanted = num_tokens - by_attention, num - by_attention
            place = (~is_first).cumsum(dim=1)
            on_grid = -(-place * wanted // rest) > -((1 - place) * wanted // rest)
        turn = torch.where(on_grid & ~is_first, num_tokens + index, turn)
        count = (turn < 3 * num_tokens).sum(dim=1, keepdim=True).clamp(max=num)
        return turn.sort(dim=1, stable=True).indices[:, :num], count

    def encode(self, views: Views, num: int) -> Kept:
        keys, features = views.keys[self.layer], views.features
        scores = attention(views.queries[self.layer], keys)
        (num_views, num_tokens), place = scores.shape, torch.arange(num, device=scores.device)
        kept, count = self.chosen(scores, num - 1)
        places = place[:-1].where(place[:-1] < count, num_tokens)  # of no token: behind all
        into = torch.full_like(scores, num_tokens, dtype=torch.long).scatter(1, kept, places)
        dropped = into == num_tokens
        values = merged(features, scores, keys[:, 1:], kept, dropped)
        values = values.take_along_dim(torch.where(place == count, num - 1, place).unsqueeze(-1), dim=1)
        extra = scores.masked_fill(~dropped, -torch.inf).argmax(dim=1, keepdim=True)
        slots = torch.cat((kept.where(places < num_tokens, num_tokens), extra), dim=1).sort(dim=1).values
        return Kept(
            slots.clamp(max=num_tokens - 1),
            views.project(values),
            valid=(place <= count).expand(num_views, -1) if self.adaptive else None,
            into=torch.where(dropped, count, into),
        )
