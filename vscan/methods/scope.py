"""SCOPE (arXiv 2510.24214, NeurIPS 2025): tokens that [CLS] attends to and that cover what no other kept one covers."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..select.scan import top
from .base import Kept, Method, Needs, Views
from .shared.cover import cosines, cover


def select(similarity: Tensor, saliency: Tensor, num: int, alpha: float = 1.0, combined: str = "multiply") -> Tensor:
    """Greedy choice by coverage and saliency; arguments and order as in `SCOPE`.

    Args:
        similarity: S, fp32 [V, N, N], symmetric.
        saliency: a, fp32 [V, N].
        num: tokens kept, at most N.

    Returns:
        Long [V, num], in the order of choice.
    """
    power = saliency**alpha
    # Where nothing is left to cover, gains are what rounding leaves of 0.
    nothing = torch.finfo(torch.float32).eps * similarity.shape[-1]
    place = top(saliency, saliency.shape[-1]).argsort(dim=-1)

    def score(gains: Tensor) -> Tensor:
        if combined == "add":
            return gains + power
        return torch.where(gains > nothing, gains * power, -1.0 - place)

    return cover(similarity, num, score)


@dataclass(frozen=True)
class SCOPE(Method):
    """score_j = (sum_i max(0, S_ij - c_i)) * a_j^alpha, T times the largest: what a token adds to coverage, times how
    salient it is.

    S are cosines of the features before the projector, c_i the largest one of i to what is chosen, 0 at first, a the
    attention of [CLS]; in a tower without [CLS], what a token receives, and S of the tokens behind the patch merger.
    Nothing is merged.

    The published code works in half precision, where sums of 576 terms lose three digits, and divides T by the images
    of a batch and by the crops of a picture, floored: here T is a view's, in fp32. Where all is covered every score is
    0 and the first tokens stay there; here those of largest attention.

    Args:
        alpha: exponent of the saliency.
        combined: "add" takes gain_j + a_j^alpha, a summed over heads: an ablation.
        attention_layer: vision layer whose [CLS] row is read.
    """

    alpha: Annotated[float, (0, None)] = 1.0
    combined: Literal["multiply", "add"] = "multiply"
    attention_layer: int = -2

    @property
    def needs(self) -> Needs:
        return Needs(rows=(self.attention_layer,))

    def encode(self, views: Views, num: int) -> Kept:
        saliency = views.rows[self.attention_layer] * views.num_heads
        return Kept(select(cosines(views.features), saliency, num, self.alpha, self.combined).sort(dim=1).values)
