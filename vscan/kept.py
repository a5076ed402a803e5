"""What a stage keeps: as a method says it, and as it is known beforehand."""

from typing import NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """Which tokens of each group (a view, a picture, or an item of the batch) go on.

    Args:
        slots: long [G, T], the places that they take. In `encode` these are tokens of the group, and tokens lie in the
            order of their slots. In `prune` they are visual columns of `Stage.hidden`; ascending, unless there are
            values: then a token whose slot is below an earlier one's stands right behind its predecessor.
        values: [G, T, D], what stands there from now on, where that changes: what the decoder will see in `encode`,
            hidden states in `prune`. None: as they stood there (in `encode`, projected).
        valid: bool [G, T] where groups keep fewer than T; what is not may have any slot in range. None where all do.
        into: long [G, N], the place in T that each token went into, -1 for none: for pictures and statistics.
    """

    slots: Tensor
    values: Tensor | None = None
    valid: Tensor | None = None
    into: Tensor | None = None


class Planned(NamedTuple):
    """A run of decoder layers, as it is known before the prompt runs.

    Args:
        start: its first layer.
        num_visual, num_valid: visual tokens and columns that hold a token, per item.
        length: columns of the longest item, which all are filled up to.
        num: per item, what the budget asks for; None where nothing is pruned here.
        competing: per item, the tokens of which it asks for so many.
    """

    start: int
    num_visual: list[int]
    num_valid: list[int]
    length: int
    num: list[int] | None = None
    competing: list[int] | None = None
