"""How the contract tests make a method, its views, and a call: the one place that knows what that looks like."""

from typing import NamedTuple

import torch
from torch import Tensor

import vscan
from vscan.methods import method_class
from vscan.methods.base import Method, Views

WIDTH, HEADS = 8, 3  # of features; of the decoder's attention

# What a method can be told that takes another way through its code; every method is tried with its defaults as well.
VARIANTS = {
    "vscan": [{"merge": False}, {"capped": True}, {"window": 4, "global_share": 0.0}, {"global_share": 1.0}],
    "vispruner": [{"important_ratio": 0.0}],
    "random": [{"seed": 3}],
}
# Methods that reduce nothing after the vision encoder, and those that do it in the blocks of a tower.
IN_THE_DECODER_ALONE = [name for name in vscan.METHODS if method_class(name).encode is Method.encode]
IN_THE_TOWER = [name for name in vscan.METHODS if method_class(name).block is not Method.block]
CASES = {
    name + "".join(f" {field}={value}" for field, value in fields.items()): (name, fields)
    for name in vscan.METHODS
    for fields in [{}, *VARIANTS.get(name, [])]
}


ENCODING = {case: call for case, call in CASES.items() if call[0] not in (*IN_THE_DECODER_ALONE, *IN_THE_TOWER)}


class Called(NamedTuple):
    """What a method made of views.

    Args:
        slots: long [V, num], the placeholders that its tokens take.
        values: [V, num, D], what the decoder sees there.
    """

    slots: Tensor
    values: Tensor


def make(name: str, fields: dict) -> Method:
    """A method with hyper-parameters."""
    return method_class(name)(**fields)


def views_of(
    method: Method, num_views: int = 3, grid: tuple[int, int] = (12, 12), seed: int = 0, alike: bool = False
) -> Views:
    """Random views in float32, without a projector; features lie in memory as a tower leaves them, behind a [CLS].

    Args:
        alike: nothing sets one token apart from another.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tokens = grid[0] * grid[1]
    pixels = torch.randn(num_views, 3, 4 * grid[0], 4 * grid[1], generator=generator)
    states = torch.randn(num_views, 1 + num_tokens, WIDTH, generator=generator)
    rows = {layer: torch.rand(num_views, num_tokens, generator=generator) for layer in method.needs.rows}
    if alike:
        pixels, states = torch.ones_like(pixels), torch.ones_like(states)
        rows = {layer: torch.ones_like(row) for layer, row in rows.items()}
    return Views(pixels, states[:, 1:], rows, grid, lambda features: features)


def changed(views: Views, function, project=None) -> Views:
    """The same views with every tensor put through a function, and perhaps with a projector."""
    rows = {layer: function(row) for layer, row in views.rows.items()}
    given = (function(views.pixels), function(views.features), rows, views.grid)
    return Views(*given, project or views.project)


def picked(views: Views, indices: list[int]) -> Views:
    """Some of the views."""
    return changed(views, lambda tensor: tensor[indices])


def cast(views: Views, dtype: torch.dtype) -> Views:
    """Pixels and features in another dtype; attention is always float32."""
    given = (views.pixels.to(dtype), views.features.to(dtype), views.rows, views.grid)
    return Views(*given, views.project)


def call(method: Method, views: Views, num: int) -> Called:
    """Let a method reduce every view to `num` tokens."""
    kept = method.encode(views, num)
    if kept.values is None:
        kept = kept._replace(values=views.project(views.features.take_along_dim(kept.slots.unsqueeze(-1), dim=1)))
    return Called(kept.slots, kept.values)


def rank(method: Method, rows: Tensor) -> Tensor:
    """Let a method rank the tokens of prompts in the decoder: [B, H, L] attention -> [B, L] scores."""
    return method.scores(rows)


def rows_of(batch: int = 3, length: int = 20, seed: int = 0) -> Tensor:
    """Attention of the last prompt token in the decoder, [B, H, L]."""
    return torch.rand(batch, HEADS, length, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)
