"""What to reduce, and to how much. Imports no torch, so that a bad command line is refused at once."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

Budget = int | float
POSITIONS = ("auto", "compact", "original")
GROUPS = ("view", "image")
FRAME_CLS = ("keep", "drop")
LATER = ("average", "preset", "group", "frame_cls")  # in a record only where they are given: older ones lack them


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


def parse_list(text: str | None, name: str) -> list | None:
    """Read a list from a command line: '[8,16]' -> [8, 16], 'None' or no flag at all -> None; ValueError otherwise."""
    try:
        value = None if text is None else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name}: expected a list such as '[16]', or None, got {text!r}")
    return None if value is None else list(value)


@dataclass(frozen=True)
class ReductionConfig:
    """One reduction: a method, its budgets and its hyper-parameters.

    Args:
        method: a name in `vscan.METHODS`.
        visual_tokens: tokens kept per view after the vision encoder (`count` says how); None keeps all.
        layers: {decoder layer: budget}: before that layer (0-based) visual tokens are pruned to the budget; an int is
            a count per view.
        average: instead of both budgets, the visual tokens of a view on average over the decoder's layers, a count or
            a share: the method's own way there (`Method.schedule`).
        preset: instead of both budgets, the name of a published schedule of the method (`Method.presets`).
        group: what one budget is for, "view" or "image": all crops of a picture, all frames of a clip; None is the
            method's own.
        frame_cls: what becomes of the [CLS] token of a clip's frame: "keep" has it beside budgets, "drop" does not;
            None is "keep" on models whose frames have one.
        positions: "compact" renumbers positions without gaps after a reduction, "original" leaves every token at the
            position it had, "auto" is what the method's authors did on that model.
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

    @classmethod
    def from_lists(cls, visual_tokens: Budget | None, layer_list, image_token_list, **rest) -> "ReductionConfig | None":
        """Build the configuration from the published flags; None (the dense model) where nothing is to be reduced.

        Args:
            visual_tokens: `--visual_token_num`.
            layer_list, image_token_list: the two lists, of equal length, or None.
        """
        layer_list, image_token_list = layer_list or [], image_token_list or []
        if len(layer_list) != len(image_token_list):
            raise ValueError(
                "layer_list and image_token_list: expected one budget per layer, "
                f"got {len(layer_list)} layers {layer_list} and {len(image_token_list)} budgets {image_token_list}"
            )
        if visual_tokens is None and not layer_list:
            return None
        stages = tuple(zip(layer_list, image_token_list, strict=True))
        return cls(visual_tokens=visual_tokens, layers=stages, **rest)

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
