"""SparseVLM (arXiv 2410.04417, ICML 2025): words of the prompt that have to do with the picture rate its tokens in
three decoder layers; of what they leave out, the best is recycled as means of clusters."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from ..config import Budget, Unreachable
from ..select.attention import rotate
from ..select.scan import top
from .base import Entry, Kept, Method, Needs, Schedule, Stage, best
from .shared.cluster import cluster_means, density_peaks, per_item

# Published: tokens kept of 576 before layers 3, 7 and 16 of 32, under the number that the authors give the average.
STARTS, DEPTH, TOKENS = (3, 7, 16), 32, 576
LISTS = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
HEADS = 14  # whose ratings count in release 2.0


@dataclass(frozen=True)
class SparseVLM(Method):
    """Before layers l + 1 the visual tokens stay that raters attended to most in layer l.

    score_j = mean over raters and heads of A_l[rater, j], rows over all tokens, text included. Raters are found once:
    of the text Q behind the visual tokens V, both at the decoder's entry, those whose mean over V of softmax(V Q^T) is
    above the mean over Q; all of Q where none is, the prompt's last token where Q is empty.

    Release 1.5 then takes the best q = floor(0.3 D) + 1 of the D dropped tokens and puts the means of what layer l made
    of them, over c = floor(q / 10) + 1 clusters, behind the n that stay: n + c are left of n asked for. Positions are
    numbered anew; where a model keeps its own (M-RoPE), a mean is at its cluster's centre. Published is noise between
    equal densities; here the earlier is the denser. The published averages count a layer with what its prune leaves:
    the layers of "192", "128" and "64" process 206, 145 and 82 tokens.

    Args:
        release: "1.5" is the paper's; in "2.0" A_l is divided by W_ij = <R_i 1, R_j 1> / sqrt(d), R being the rotary
            embedding, the 14 heads of largest sums count, nothing is recycled, and positions stay.
    """

    release: Literal["1.5", "2.0"] = "1.5"
    ranks_cls = True
    with_rotary = True

    @property
    def positions(self) -> str:
        return "compact" if self.release == "1.5" else "original"

    @property
    def presets(self) -> dict[str, Schedule]:
        """The release's own lists at layers 3, 7 and 16, whatever the depth."""
        lists = LISTS[self.release].items()
        return {f"published-{name}": Schedule(layers=dict(zip(STARTS, counts, strict=True))) for name, counts in lists}

    @property
    def needs(self) -> Needs:
        return Needs(back=1)

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """The nearest list at its shares of the depth, scaled until so many tokens, recycled or not, or a few less are
        processed; one layer at least is dense."""
        is_count, num_tokens = isinstance(average, int), num_tokens or TOKENS
        asked = average if is_count else average * num_tokens
        starts = [max(1, round(start * num_layers / DEPTH)) for start in STARTS]

        def scaled(counts: tuple[int, ...], scale: float) -> tuple[float, dict[int, tuple[int, int]]]:
            """The average, and {layer: (tokens asked for, tokens that arrive)}."""
            left, layer, total, stages = num_tokens, 0, 0, {}
            for start, count in dict(zip(starts, counts, strict=True)).items():
                stages[start] = max(1, min(left, int(scale * count * num_tokens / TOKENS))), left
                total, layer, left = total + (start - layer) * left, start, self.leaves(*stages[start])
            return (total + (num_layers - layer) * left) / num_layers, stages

        nearest = min(LISTS[self.release].values(), key=lambda counts: abs(scaled(counts, 1)[0] - asked))
        if (least := scaled(nearest, 0)[0]) > asked:
            raise Unreachable(ceil(least) if is_count else ceil(1e6 * least / num_tokens) / 1e6)
        low, high = 0.0, float(2 * TOKENS)
        for _ in range(60):  # past the precision of a float
            scale = (low + high) / 2
            low, high = (low, scale) if scaled(nearest, scale)[0] > asked else (scale, high)
        # A share is floored: half a token more is the same number of them.
        stages = scaled(nearest, low)[1].items()
        return Schedule(layers={at: num if is_count else min(1.0, (num + 0.5) / left) for at, (num, left) in stages})

    def leaves(self, num: int, arriving: int) -> int:
        return min(num, arriving) + (recycled(num, arriving)[1] if self.release == "1.5" else 0)

    def prune(self, stage: Stage) -> Kept:
        if "raters" not in stage.memory:
            stage.memory["raters"] = raters(stage.entry)
        scores = self.ratings(stage, stage.memory["raters"].to(stage.hidden.device))
        scores = scores.masked_fill(~stage.visual, -torch.inf)
        kept = best(scores, stage.num)
        return recycle(stage, scores, kept) if self.release == "1.5" else kept

    def ratings(self, stage: Stage, asking: Tensor) -> Tensor:
        """What raters, bool [B, T] of the text in its order, give to all columns: [B, S] fp32."""
        columns = top(stage.text.int(), asking.shape[1])  # those of text, in their order
        columns = torch.where(asking, columns, stage.last.unsqueeze(1))
        weights = (asking | ~asking.any(dim=1, keepdim=True)).float()
        rows = stage.rows(columns, back=1)  # B H T S
        if self.release == "2.0":
            rows = rows / closeness(stage, columns).unsqueeze(1)
        heads = (rows * weights[:, None, :, None]).sum(dim=2) / weights.sum(dim=1).view(-1, 1, 1)  # B H S
        if self.release == "2.0":
            largest = top(heads.masked_fill(~stage.visual.unsqueeze(1), 0).sum(dim=-1), HEADS)
            heads = heads.take_along_dim(largest.unsqueeze(-1), dim=1)
        return heads.mean(dim=1)


def raters(entry: Entry) -> Tensor:
    """Which of an item's tokens of text, numbered in their order, rate its pictures: bool [B, T]."""
    columns = top(entry.text.int(), entry.num_text)  # those of text come first, in their order
    index = torch.arange(entry.text.shape[1], device=columns.device)
    last = torch.where(entry.visual, index, -1).amax(dim=1, keepdim=True)
    later = (entry.text & (index > last)).gather(1, columns)
    hidden = entry.hidden.float()
    products = hidden @ hidden.take_along_dim(columns.unsqueeze(-1), dim=1).transpose(1, 2)  # B S T
    shares = products.masked_fill(~later.unsqueeze(1), -torch.inf).softmax(dim=-1)
    means = shares.masked_fill(~entry.visual.unsqueeze(-1), 0).sum(dim=1) / entry.visual.sum(dim=1, keepdim=True)
    chosen = later & (means > means.sum(dim=1, keepdim=True) / later.sum(dim=1, keepdim=True))
    return torch.where(chosen.any(dim=1, keepdim=True), chosen, later)


def closeness(stage: Stage, columns: Tensor) -> Tensor:
    """W of release 2.0 for the columns that ask: [B, T, S]."""
    cos, sin = (part.float().expand(len(columns), -1, -1) for part in stage.rotary)
    ones = rotate(torch.ones_like(cos).unsqueeze(1), cos, sin)[:, 0]
    return ones.take_along_dim(columns.unsqueeze(-1), dim=1) @ ones.transpose(1, 2) / cos.shape[-1] ** 0.5


def recycled(num: int, arriving: int) -> tuple[int, int]:
    """How many dropped tokens are taken, and how many clusters they become."""
    taken = int(0.3 * (arriving - num)) + 1 if num < arriving else 0
    return taken, taken // 10 + 1 if taken else 0


def recycle(stage: Stage, scores: Tensor, kept: Kept) -> Kept:
    """Put the means of clusters behind what is kept."""
    num_taken, num_clusters = zip(*map(recycled, stage.num, stage.arriving), strict=True)
    num, taken, clusters = (per_item(each, scores.device) for each in (stage.num, num_taken, num_clusters))
    (batch, width), behind = scores.shape, kept.slots.shape[1]
    index = torch.arange(max(num_taken), device=scores.device)
    points = top(scores, width).gather(1, (num + index).clamp(max=width - 1))  # the best that are dropped
    tokens = stage.hidden.take_along_dim(points.unsqueeze(-1), dim=1)
    centres, cluster = density_peaks(tokens, num_taken, num_clusters)
    means = cluster_means(tokens, num_taken, cluster, max(num_clusters)).to(tokens.dtype)

    slots = torch.cat((kept.slots, points.gather(1, centres)), dim=1)
    values = torch.cat((stage.hidden.take_along_dim(kept.slots.unsqueeze(-1), dim=1), means), dim=1)
    place = torch.arange(slots.shape[1], device=scores.device).expand(batch, -1)
    valid = torch.where(place < behind, place < num, place - behind < clusters)
    into = torch.full((batch, width + 1), -1, device=scores.device)  # what is no token goes to a column that is cut off
    into.scatter_(1, slots[:, :behind].where(valid[:, :behind], width), place[:, :behind])
    into.scatter_(1, points.where(index < taken, width), behind + cluster)
    return Kept(slots, values, valid, into[:, :-1])
