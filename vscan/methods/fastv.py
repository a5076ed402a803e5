"""FastV (arXiv 2403.06764, ECCV 2024): after a few dense decoder layers, the visual tokens that the prompt's last token
attended to most in the last of them."""

from dataclasses import dataclass
from typing import Annotated

import torch

from ..config import Budget, Unreachable
from .base import Kept, Method, Needs, Schedule, Stage, best


@dataclass(frozen=True)
class FastV(Method):
    """One prune before decoder layer K, by the attention with which layer K - 1 ran; what is dropped is gone.

    score_j = mean_h A^(K-1)_h[last, j], a softmax over the whole causal row, text included; every visual token of the
    prompt competes, and all that stay keep their original positions.

    The selection is made once, in the prompt's own pass, and stays with the cache, as in the authors' version with a
    cache; their two versions for LLaVA's scripts select again at every generated token. Those scripts also start the
    picture one token too late, so that its first token always stays and a token of text can be dropped for it: here a
    visual token is what the prompt says is one.

    Args:
        layer: K, how many decoder layers an `average` leaves dense; `layers={K: tokens}` says it outright.
    """

    layer: Annotated[int, (1, None)] = 2

    positions = "original"
    ranks_cls = True
    with_rotary = True  # the attention with which the layer ran

    @property
    def needs(self) -> Needs:
        return Needs(back=1)

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """All N tokens in K of T layers, r = (average T - K N) / (T - K) in the others; of a share, both over N.

        A count r is floored: the average is what was asked for, or less by a part of a token.
        """
        if self.layer >= num_layers:
            raise ValueError(f"layer: expected fewer dense layers than the decoder's {num_layers}, got {self.layer}")
        is_count = isinstance(average, int)
        dense, pruned = self.layer * (num_tokens if is_count else 1), num_layers - self.layer
        left = average * num_layers - dense
        if left < 0:
            raise Unreachable(-(-dense // num_layers) if is_count else dense / num_layers)
        # None left is no share; it is what the least average leaves.
        return Schedule(layers={self.layer: left // pruned if is_count else left / pruned or 0})

    def prune(self, stage: Stage) -> Kept:
        scores = self.scores(stage.rows(back=1)[:, :, 0])
        return best(scores.masked_fill(~stage.visual, -torch.inf), stage.num)
