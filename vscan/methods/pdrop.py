"""PyramidDrop (arXiv 2410.17247, CVPR 2025): decoder stages that each leave the same share of the visual tokens."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..config import Budget, Unreachable
from .base import Method, Schedule

HALVINGS = 60  # of the interval that the ratio lies in: past the precision of a float


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Before each of several decoder layers, the visual tokens that the prompt's last token attends to most there stay.

    score_j = mean_h softmax(q_last K^T / sqrt(d))_h[j] with the norm, queries and keys of the layer about to run, over
    the whole causal row, text included: VScan's way to prune, which descends from it. Positions are numbered anew.

    Published are layers 8, 16 and 24 of 32 with half of what arrives, `preset="published"`: 270 of 576 tokens on
    average. No average below a quarter of the tokens exists, for a quarter of the layers is dense (144 of 576). The
    published code floors shares of the prompt's first number of tokens, where shares here are of what arrives.
    """

    ranks_cls = True
    with_rotary = True
    presets: ClassVar[dict[str, Schedule]] = {"published": Schedule(layers={8: 0.5, 16: 0.5, 24: 0.5})}

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """Stages at a quarter, a half and three quarters of the depth: lambda, lambda^2 and lambda^3 of the tokens.

        Counts are floored: the average is what was asked for, or less by a part of a token.
        """
        is_count = isinstance(average, int)
        starts = sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)})
        runs = [end - start for start, end in pairwise([0, *starts, num_layers])]
        whole = num_tokens if is_count else 1
        left = average * num_layers - runs[0] * whole
        if left < 0:
            raise Unreachable(-(-runs[0] * whole // num_layers) if is_count else runs[0] / num_layers)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            over = sum(run * whole * ratio**power for power, run in enumerate(runs[1:], start=1)) > left
            low, high = (low, ratio) if over else (ratio, high)
        # The upper end, for floors: 1/3 of 576 is 192. Nothing is left where the average is the least that exists.
        ratio = high if left > 0 else 0
        if is_count:
            budgets = [int(num_tokens * ratio**power) for power in range(1, len(runs))]
        else:
            budgets = [ratio] * len(starts)  # of what arrives
        return Schedule(layers=dict(zip(starts, budgets, strict=True)))
