"""VScan (arXiv 2505.22654): global and local scans with merging, then middle-layer pruning."""

from dataclasses import dataclass
from typing import Annotated

import torch

from ..config import Budget
from ..flops import vscan_schedule, vscan_shares
from ..select.merge import merge
from ..select.scan import scan
from .base import Kept, Method, Needs, Schedule, Tower, Views


@dataclass(frozen=True)
class VScan(Method):
    """Half of the tokens by attention in a deep layer, half per window in a shallow one; the rest is merged in.

    Defaults are those of LLaVA; on Qwen2.5-VL they are its own (`vscan.models.qwen2_5_vl.defaults`).

    Args:
        prune_layer: the decoder layer that an average prunes before; None is the middle one.
        local_layer: vision layer of the local scan (0-based block; the paper's l = 6 is block 5).
        global_layer: vision layer of the global scan.
        window: side of a local window in tokens, where it divides the grid; else 4.
        global_share: share of the tokens that the global scan selects, in [0, 1].
        merge: average dropped tokens into their nearest kept token (after the projector).
        capped: local tokens are the best of the whole view with a cap per window, instead of equally many per window.
    """

    local_layer: int = 5
    global_layer: int = -2
    window: Annotated[int, (1, None)] = 6
    global_share: Annotated[float, (0, 1)] = 0.5
    merge: bool = True
    capped: bool = False
    prune_layer: Annotated[int, (1, None)] | None = None

    @property
    def needs(self) -> Needs:
        return Needs(rows=(self.local_layer, self.global_layer))

    def check(self, tower: Tower) -> None:
        super().check(tower)
        num_layers = tower.num_layers
        if self.local_layer % num_layers >= self.global_layer % num_layers:
            raise ValueError(
                f"VScan: expected a local layer below the global one, got layer {self.local_layer % num_layers} and "
                f"layer {self.global_layer % num_layers} of {num_layers}"
            )

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """R1 = 1.5 x the average enter the decoder, and R1 / 3 go on from its middle layer."""
        if isinstance(average, float):
            entering, layers = vscan_shares(average, num_layers, self.prune_layer)
        else:
            entering, layers = vscan_schedule(average, num_layers, self.prune_layer)
        return Schedule(entering, dict(layers))

    def encode(self, views: Views, num: int) -> Kept:
        local, best = scan(
            views.rows[self.local_layer],
            views.rows[self.global_layer],
            views.grid,
            num,
            self.window,
            self.global_share,
            self.capped,
        )
        slots = torch.cat((local, best), dim=1).sort(dim=-1).values
        return Kept(slots, merge(views.project(views.features), slots) if self.merge else None)
