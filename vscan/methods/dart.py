"""DART (arXiv 2502.11494, EMNLP 2025): in the decoder, a few pivots and the visual tokens that are least like them."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..config import Budget, Unreachable
from ..select.scan import top
from .base import Kept, Method, Needs, Schedule, Stage, best
from .shared.cluster import per_item


def from_zero(stage: Stage) -> Stage:
    """The same with every item's positions counted from its first token, wherever padding has put that: ||k||_1 is not
    that of a rotated k."""
    cos, sin = (part.expand(len(stage.hidden), -1, -1) for part in stage.rotary)
    first = (stage.text | stage.visual).int().argmax(dim=1).view(-1, 1, 1)
    cos_0, sin_0 = cos.take_along_dim(first, dim=1), sin.take_along_dim(first, dim=1)
    scale = (cos_0.square() + sin_0.square()).sqrt()
    return replace(stage, rotary=((cos * cos_0 + sin * sin_0) / scale, (sin * cos_0 - cos * sin_0) / scale))


@dataclass(frozen=True)
class DART(Method):
    """Before layer K, pivots stay and each of them keeps the floor(T / pivots) visual tokens that are least like it.

    Pivots are the visual tokens, and the tokens of text behind the last one, with the largest ||k||_1 of the keys of
    layer K - 1, rotated, over all heads. One after another they take, of the visual tokens that are left, those of
    smallest cosine, of what layer K - 1 made of them through the model's last norm. Text pivots only choose: of T
    tokens asked for image_pivots + pivots * floor(T / pivots) stay, 4 more than T, as published, and no more than there
    are. All keep their positions.

    The published code visits pivots in the order in which a Python set of their columns is iterated; here it is the
    visual ones and then those of text, by descending norm. It also finds the picture at a given column, takes one
    prompt at a time, and fails where there are too few tokens for a pivot; here, where a prompt has fewer tokens of
    text behind its pictures, its last token stands in.

    Args:
        layer: K, how many decoder layers an `average` leaves dense; `layers={K: tokens}` says it outright.
        image_pivots: visual tokens that are pivots.
        text_pivots: tokens of text that are pivots.
    """

    layer: Annotated[int, (1, None)] = 2
    image_pivots: Annotated[int, (1, None)] = 4
    text_pivots: Annotated[int, (0, None)] = 4

    positions = "original"
    with_rotary = True  # keys as the layer ran with them
    # T of the authors' scripts, by which they name the runs; on LLaVA-NeXT a fifth of theirs.
    presets: ClassVar = {f"published-{num}": Schedule(layers={2: num}) for num in (192, 128, 64, 32)}

    @property
    def needs(self) -> Needs:
        return Needs(back=1)

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """All N tokens in K of T layers, and in the others what is left of the average or a few less; of a share of
        views that vary in size, image_pivots more."""
        if self.layer >= num_layers:
            raise ValueError(f"layer: expected fewer dense layers than the decoder's {num_layers}, got {self.layer}")
        pivots, pruned = self.image_pivots + self.text_pivots, num_layers - self.layer
        if num_tokens is None:
            left = (average * num_layers - self.layer) / pruned
            if left <= 0:
                raise Unreachable(self.layer / num_layers)
            return Schedule(layers={self.layer: left})
        asked = average if isinstance(average, int) else average * num_tokens
        left = (asked * num_layers - self.layer * num_tokens) / pruned
        if left < self.image_pivots:
            least = (self.layer * num_tokens + pruned * self.image_pivots) / num_layers
            raise Unreachable(ceil(least) if isinstance(average, int) else least / num_tokens)
        num = int(left - self.image_pivots) // pivots * pivots
        return Schedule(layers={self.layer: max(1, num)})  # of fewer than there are pivots, those of the picture stay

    def each(self, num: int, arriving: int) -> int:
        """How many tokens every pivot keeps."""
        return max(0, min(num, arriving - self.image_pivots) // (self.image_pivots + self.text_pivots))

    def leaves(self, num: int, arriving: int) -> int:
        return min(arriving, self.image_pivots + (self.image_pivots + self.text_pivots) * self.each(num, arriving))

    def prune(self, stage: Stage) -> Kept:
        arriving = list(zip(stage.num, stage.arriving, strict=True))
        counts = [there if num == there else self.leaves(num, there) for num, there in arriving]
        each = [self.each(*pair) for pair in arriving]
        pivots = self.visited(self.pivots(stage))
        states = normalize(stage.final_norm(stage.hidden).float(), dim=-1)
        likeness = states.take_along_dim(pivots.unsqueeze(-1), dim=1) @ states.transpose(1, 2)  # B P S
        scores = (-likeness).masked_fill(~stage.visual.unsqueeze(1), -torch.inf)
        stays = torch.zeros_like(stage.visual).scatter(1, pivots, True)
        for score in scores.unbind(dim=1):
            order = top(score.masked_fill(stays, -torch.inf), max(each))
            taken = torch.arange(max(each), device=order.device) < per_item(each, order.device)
            stays = stays.scatter(1, order, taken | stays.gather(1, order))
        whole = [num == there for num, (_, there) in zip(counts, arriving, strict=True)]
        stays = (stays | per_item(whole, stays.device).bool()) & stage.visual
        return best(torch.zeros_like(scores[:, 0]).masked_fill(~stays, -torch.inf), counts)

    def pivots(self, stage: Stage) -> Tensor:
        """Columns of the pivots, visual ones first, each kind by descending norm: long [B, P]."""
        norms = from_zero(stage).keys(back=1).float().abs().sum(dim=(1, 3))
        index = torch.arange(norms.shape[1], device=norms.device)
        last = torch.where(stage.visual, index, -1).amax(dim=1, keepdim=True)
        behind = stage.text & (index > last)
        image = top(norms.masked_fill(~stage.visual, -torch.inf), self.image_pivots)
        text = top(norms.masked_fill(~behind, -torch.inf), self.text_pivots)
        return torch.cat((image, torch.where(behind.gather(1, text), text, stage.last.unsqueeze(1))), dim=1)

    def visited(self, pivots: Tensor) -> Tensor:
        """Pivots, long [B, P], in the order in which they choose."""
        return pivots
