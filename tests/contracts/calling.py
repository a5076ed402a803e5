"""How the contract tests make a method, its views, and a call: the one place that knows what that looks like."""

from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

import vscan
from vscan.methods import method_class
from vscan.methods.base import Method, Views
from vscan.methods.shared.question import Question

WIDTH, HEADS = 8, 3  # of features; of the decoder's attention

# What a method can be told that takes another way through its code; every method is tried with its defaults as well.
VARIANTS = {
    "vscan": [{"merge": False}, {"capped": True}, {"window": 4, "global_share": 0.0}, {"global_share": 1.0}],
    "vispruner": [{"important_ratio": 0.0}],
    "random": [{"seed": 3}],
    "scope": [{"alpha": 0.5}, {"combined": "add"}],
    "visionzip": [{"contextual_share": 0.0}, {"contextual_share": 0.5}],
    "prumerge": [{"plus": True}],
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
    keys = {layer: torch.randn(num_views, 1 + num_tokens, WIDTH, generator=generator) for layer in method.needs.keys}
    queries = {layer: torch.randn(num_views, WIDTH, generator=generator) for layer in method.needs.keys}
    given = (pixels, states[:, 1:], rows, grid, lambda features: features, states[:, 0], keys, queries)
    views = Views(*given, num_heads=2, text=questions_of(method, num_views, generator))
    return changed(views, torch.ones_like) if alike else views


def questions_of(method: Method, num_views: int, generator: torch.Generator) -> list[Question] | None:
    """Questions of one, two, three, ... words beside the views of a method that reads text."""
    if type(method).prepare is Method.prepare:
        return None
    words = [torch.randn(1 + view, WIDTH, generator=generator) for view in range(num_views)]
    return [Question(rows.mean(dim=0, keepdim=True), [rows]) for rows in words]


def changed(views: Views, function, project=None) -> Views:
    """The same views with every tensor put through a function, and perhaps with a projector."""

    def through(value):
        if isinstance(value, dict):
            return {key: through(each) for key, each in value.items()}
        return function(value) if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value

    found = {field.name: through(getattr(views, field.name)) for field in fields(views)}
    return replace(views, **found | {"project": project or views.project})


def picked(views: Views, indices: list[int]) -> Views:
    """Some of the views."""
    text = views.text and [views.text[index] for index in indices]
    return replace(changed(views, lambda tensor: tensor[indices]), text=text)


def put(views: Views, place: int, others: Views, index: int) -> None:
    """Write one view of others over one of these."""

    def write(value, other) -> None:
        if isinstance(value, dict):
            for key in value:
                write(value[key], other[key])
        elif isinstance(value, Tensor | list):
            value[place] = other[index]

    for field in fields(views):
        write(getattr(views, field.name), getattr(others, field.name))


def cast(views: Views, dtype: torch.dtype) -> Views:
    """All but attention, which is always float32, in another dtype."""
    return replace(changed(views, lambda tensor: tensor.to(dtype)), rows=views.rows)


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
