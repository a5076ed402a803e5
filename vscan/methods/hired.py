"""HiRED (arXiv 2408.10945, AAAI 2025): one budget for a picture and its tiles, shared out by what [CLS] sees early."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..select.scan import top
from .base import Kept, Method, Needs, Views
from .shared.crops import share_out


def shares(
    early: Tensor, grid: tuple[int, int], tiles: tuple[int, int], share: float, num: int
) -> tuple[Tensor, Tensor]:
    """How `num` tokens are shared out among the tiles: num * c_i / sum(c), c_i the patches seen early in tile i.

    Args:
        early: [N] fp32, attention that the patches of the whole picture get in an early layer.
        grid: (height, width) of the whole picture, in patches.
        tiles: rows and columns of tiles that lie over it; a patch is in the tile that its centre is in.
        share: of the N patches, those with the most attention that are counted; where that is none, all are.
        num: tokens to share out.

    Returns:
        The shares floored, long [tiles], and each tile's place in the order of what the floors took, long [tiles].
    """
    (height, width), (rows, columns), device = grid, tiles, early.device
    row = (2 * torch.arange(height, device=device) + 1) * rows // (2 * height)
    column = (2 * torch.arange(width, device=device) + 1) * columns // (2 * width)
    tile = (row.unsqueeze(1) * columns + column).flatten()
    num_early = int(len(early) * share) or len(early)
    seen_early = tile[top(early, num_early)]
    counts = torch.zeros(rows * columns, dtype=torch.long, device=device)
    wanted = num * counts.scatter_add_(0, seen_early, torch.ones_like(seen_early))
    taken = top(wanted % num_early, rows * columns)
    return wanted // num_early, taken.argsort()


@dataclass(frozen=True)
class HiRED(Method):
    """The tokens that [CLS] attends to most in a deep layer, of each tile as many as an early layer finds interesting.

    Of T tokens for a picture in crops, int(alpha T) are those of the whole picture and the rest is shared out among the
    tiles, in proportion to how many of the int((1 - alpha) N) patches with the most early attention lie in each. A
    single view keeps its T best, and `alpha` means nothing; so does a clip, whose frames share a budget.

    The published code counts early patches in strips of memory instead of tiles, swaps rows and columns of tiles, loses
    tokens to floors, to full tiles and to padding, and stops with an error where `alpha` is 1 and the whole picture is
    full. Here tiles are tiles, and the budget is met exactly as long as the model shows so many tokens: what floors
    take goes to the tiles that lost most, what a tile cannot take to the others in turn; padding is no candidate.

    Args:
        alpha: share of the tokens that the whole picture gets.
        early_layer: vision layer whose [CLS] row shares out among tiles (0-based block).
        final_layer: vision layer whose [CLS] row ranks tokens.
    """

    alpha: Annotated[float, (0, 1)] = 0.5
    early_layer: int = 0
    final_layer: int = -2

    @property
    def needs(self) -> Needs:
        return Needs(rows=(self.early_layer, self.final_layer), cls=True, group="image")

    def encode(self, views: Views, num: int) -> Kept:
        scores, layout = views.rows[self.final_layer], views.layout
        if layout is None:
            return Kept(top(scores, num).sort(dim=1).values)
        num_views, num_tokens = scores.shape
        whole = min(int(num * self.alpha), num_tokens)
        early = views.rows[self.early_layer][0]
        quotas, turns = shares(early, views.grid, layout.tiles, 1 - self.alpha, num - whole)
        quotas = torch.cat((quotas.new_full((1,), whole), quotas))
        turns = torch.cat((turns.new_full((1,), num_views * num_tokens), turns))  # more of the whole picture comes last
        return share_out(scores, layout.seen, quotas, turns, num)
