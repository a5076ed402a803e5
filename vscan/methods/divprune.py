"""DivPrune (arXiv 2503.02175, CVPR 2025): the tokens that are least like each other, whatever they show."""

from dataclasses import dataclass

from ..config import Budget
from .base import Kept, Method, Schedule, Views
from .shared.cover import cosines, farthest


@dataclass(frozen=True)
class DivPrune(Method):
    """Max-min diversity of what the decoder would see: maximise min d_ij over the kept, d_ij = 1 - cos(x_i, x_j).

    First the token that is farthest from its nearest neighbour, then T - 1 times the one that is farthest from all that
    are chosen, with a running minimum. No attention and no text is read; nothing is merged.

    The published code computes distances in half precision and masks nothing, so that where a picture has fewer
    different tokens than T it takes some twice, and feeds them twice: here T different ones stay, the earlier ones on
    ties. It ranks crops of any resolution together, newlines among them, scores the first picture of a batch for all,
    and looks for it at column 35: here every view has its own T, found where the prompt says. Its own shares, 0.098 for
    56 of 576, are rounded half to even, as `average` does; on Qwen2.5-VL, where none is published, tokens are compared
    behind the patch merger.
    """

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        if isinstance(average, int) or num_tokens is None:
            return Schedule(average)
        return Schedule(max(1, round(average * num_tokens)))

    def encode(self, views: Views, num: int) -> Kept:
        tokens = views.project(views.features)
        slots = farthest(1 - cosines(tokens), num).sort(dim=1).values
        return Kept(slots, tokens.take_along_dim(slots.unsqueeze(-1), dim=1))
