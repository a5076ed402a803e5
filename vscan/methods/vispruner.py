"""VisPruner (arXiv 2412.01818, ICCV 2025): the tokens [CLS] attends to most, and the least alike of the rest; and
FasterVLM, that paper's first version, which keeps the former alone."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..select.scan import top
from .base import Kept, Method, Needs, Views

REMOVED_PER_ROUND = 8  # as published


@torch.no_grad()
def select(attention: Tensor, features: Tensor, num: int, num_important: int) -> tuple[Tensor, Tensor]:
    """Important tokens by attention, then diverse ones by removal rounds over the rest.

    Z_imp = the `num_important` tokens of largest attention. The others, in descending order of attention, go through
    rounds until R = `num` - `num_important` of them are left: even positions are the set a, odd ones the set b (of an
    odd number a has one more); s(a_i) = max_j cos(a_i, b_j); the min(8, what is too many) of a with the largest s go,
    or all of a where that is fewer. The next round sees what is left of a by descending s, then b as it was.

    The order decides the next round's pairs, so two similarities that rounding swaps can change half of the result:
    where cosines are nearly equal, expect the same tokens only from the same bits. Ties go to the earlier position.
    Cosines are computed once, in fp32, as one matrix [V, N, N]: 4 times faster than a matmul per round (576 to 128).

    Args:
        attention: [V, N] fp32, attention of [CLS] to each token.
        features: [V, N, C], any float dtype, before the projector.
        num: tokens kept in all, at most N.
        num_important: how many of them are selected by attention, at most `num`.

    Returns:
        Long indices: important [V, num_important] by descending attention, and diverse [V, num - num_important] in the
        order that the last round left.
    """
    num_views, num_tokens = attention.shape
    order = top(attention, num_tokens)
    important, rest = order[:, :num_important], order[:, num_important:]
    num_diverse = num - num_important
    if num_diverse == 0:
        return important, rest[:, :0]
    unit = normalize(features.float(), dim=-1)
    cosine = (unit @ unit.transpose(1, 2)).flatten(0, 1)  # V*N N
    first_row = torch.arange(num_views, device=order.device).unsqueeze(1) * num_tokens  # V 1
    while rest.shape[1] > num_diverse:
        a, b = rest[:, ::2], rest[:, 1::2]
        # The largest cosine of every token to b, from b's rows in one piece: cheaper than picking a's columns first.
        of_b = cosine.index_select(0, (b + first_row).flatten()).view(num_views, -1, num_tokens)
        nearness = of_b.amax(dim=1).gather(1, a)
        num_removed = min(REMOVED_PER_ROUND, rest.shape[1] - num_diverse)
        rest = torch.cat((a.gather(1, top(nearness, a.shape[1])[:, num_removed:]), b), dim=1)
    return important, rest


@dataclass(frozen=True)
class VisPruner(Method):
    """A share of the tokens by [CLS] attention, the others by dropping what is most similar; nothing is merged.

    int(T * important_ratio) of T tokens are important ones, as published; every T and ratio works, where the published
    code needs an even number of other tokens in each round.

    Args:
        important_ratio: share of the tokens that attention selects, in [0, 1]; 1.0 is `FasterVLM`.
        attention_layer: vision layer whose [CLS] row is read.
    """

    important_ratio: Annotated[float, (0, 1)] = 0.5
    attention_layer: int = -2

    anyres_resolution = (672, 672)

    @property
    def needs(self) -> Needs:
        return Needs(rows=(self.attention_layer,))

    def encode(self, views: Views, num: int) -> Kept:
        num_important = int(num * self.important_ratio)
        picked = select(views.rows[self.attention_layer], views.features, num, num_important)
        return Kept(torch.cat(picked, dim=1).sort(dim=-1).values)


@dataclass(frozen=True)
class FasterVLM(VisPruner):
    """The tokens [CLS] attends to most, and no others: VisPruner with another default."""

    important_ratio: Annotated[float, (0, 1)] = 1.0
