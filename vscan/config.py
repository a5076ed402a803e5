"""What to reduce, and to how much. Imports no torch, so that a bad command line is refused at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

Budget = int | float
POSITIONS = ("auto", "compact", "original")
GROUPS = ("view", "image")
FRAME_CLS = ("keep", "drop")
LATER = ("average", "preset", "group", "frame_cls")  # in a record only where they are given: older ones lack them


class Unreachable(ValueError):
    """No budgets of a method give an average over the decoder's layers.

    Args:
        least: the smallest average that exists, a count or a share as it was asked.
    """

    def __init__(self, least: Budget):
        super().__init__(least)
        self.least = least

    def __str__(self) -> str:
        return f"average: not reachable (at least {self.least:g})"


def count(num_tokens: int, budget: Budget | None, num_views: int = 1) -> int:
    """How many of `num_tokens` tokens a budget keeps; a pure function, so that shapes are known before the data.

    Args:
        num_tokens: tokens that arrive.
        budget: None keeps all; an int is a count per view; a float in (0, 1] is a share of the tokens that arrive,
            floored as published, at least 1.
        num_views: crops, frames or images among which the tokens compete.
    """
    if budget is None:
        return num_tokens
    if isinstance(budget, int):
        return min(num_views * budget, num_tokens)
    return min(max(1, int(budget * num_tokens)), num_tokens)


def check_budget(budget: Any, name: str, least: int = 1) -> Budget:
    """Return `budget` if it is one: an int of at least `least`, or a float in (0, 1]; else raise ValueError.

    Numbers of numpy become Python's.
    """
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise ValueError(f"{name}: expected a count (int) or a share (float), got {budget!r}")
    budget = int(budget) if isinstance(budget, Integral) else float(budget)
    if isinstance(budget, int) and budget < least:
        raise ValueError(f"{name}: expected a count of at least {least}, got {budget}")
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ValueError(f"{name}: expected a share in (0, 1], got {budget}; a count is written without a point")
    return budget


def check_arriving(config: "ReductionConfig", num_tokens: int | None, most: int) -> None:
    """Raise ValueError for a count above what arrives at its stage, with both numbers.

    Args:
        num_tokens: visual tokens of a view; None where views vary in size.
        most: visual tokens that a prompt can hold at all.
    """
    arriving = most if num_tokens is None else num_tokens
    for name, budget in [
        ("visual_tokens", config.visual_tokens),
        *((f"layers: layer {layer}", budget) for layer, budget in config.layers),
    ]:
        if isinstance(budget, int) and budget > arriving:
            raise ValueError(
                f"{name}: expected at most the {arriving} visual tokens of a view that arrive, got {budget}"
            )
        arriving = count(arriving, budget)


def check_layers(layers: Any) -> tuple[tuple[int, Budget], ...]:
    """Return the pruning stages as ((layer, budget), ...), in ascending order of layers; ValueError if they are not."""
    if layers is None:
        return ()
    try:
        layers = sorted(layers.items()) if isinstance(layers, Mapping) else list(layers)
    except TypeError as error:
        raise ValueError(f"layers: expected {{decoder layer: budget}} such as {{16: 32}}, got {layers!r}") from error
    stages = []
    for stage in layers:
        if not isinstance(stage, Sequence) or len(stage) != 2:
            raise ValueError(f"layers: expected pairs of layer and budget such as {{16: 32}}, got {stage!r}")
        layer, budget = stage
        if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 0:
            raise ValueError(f"layers: expected a decoder layer of 0 or more, got {layer!r}")
        if stages and layer <= stages[-1][0]:
            raise ValueError(f"layers: expected ascending decoder layers, got {layer} after {stages[-1][0]}")
        stages.append((int(layer), check_budget(budget, f"layers: budget of layer {layer}", least=0)))
    return tuple(stages)


@dataclass(frozen=True)
class ReductionConfig:
    """One reduction: a method, its budgets and its hyper-parameters.

    Args:
        method, visual_tokens, layers, positions, average, preset, group, frame_cls: as `vscan.reduce` takes them.
        fields: the method's own hyper-parameters, where they differ from its defaults.

    Raises:
        ValueError: for a budget, a layer list or a choice that is none.
    """

    method: str = "vscan"
    visual_tokens: Budget | None = None
    layers: tuple[tuple[int, Budget], ...] = ()
    positions: str = "auto"
    fields: Mapping[str, Any] = field(default_factory=dict)
    average: Budget | None = None
    preset: str | None = None
    group: str | None = None
    frame_cls: str | None = None

    def __post_init__(self):
        from .methods import METHODS

        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions: expected one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.visual_tokens is not None:
            object.__setattr__(self, "visual_tokens", check_budget(self.visual_tokens, "visual_tokens"))
        object.__setattr__(self, "layers", check_layers(self.layers))
        if self.group not in (None, *GROUPS):
            raise ValueError(f"group: expected one of {', '.join(GROUPS)}, or None, got {self.group!r}")
        if self.frame_cls not in (None, *FRAME_CLS):
            raise ValueError(f"frame_cls: expected one of {', '.join(FRAME_CLS)}, or None, got {self.frame_cls!r}")
        if self.average is not None:
            object.__setattr__(self, "average", check_budget(self.average, "average"))
        given = [name for name in ("average", "preset") if getattr(self, name) is not None]
        given += ["visual_tokens and layers"] if self.visual_tokens is not None or self.layers else []
        if len(given) > 1:
            raise ValueError(f"expected one of average, preset, or visual_tokens and layers, got {' and '.join(given)}")
        object.__setattr__(self, "fields", dict(self.fields))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for the record beside an answers file."""
        return {
            "method": self.method,
            "visual_tokens": self.visual_tokens,
            "layers": [list(stage) for stage in self.layers],
            "positions": self.positions,
            **{name: getattr(self, name) for name in LATER if getattr(self, name) is not None},
            **self.fields,
        }
