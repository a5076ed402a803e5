"""A CLIP vision tower: run no further than needed, with what a method reads collected on the way."""

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..compat import clip_blocks, clip_entry, projections, run_clip_block
from ..methods.base import Layout, Method, Needs, Views
from ..select.attention import attends_over_time, cls_row, device_of, over_time


def grid_of(tower: nn.Module) -> tuple[int, int]:
    """Height and width of a CLIP tower's grid, in tokens."""
    side = tower.config.image_size // tower.config.patch_size
    return side, side


class Seen(NamedTuple):
    """What a tower made of views.

    Args:
        hidden: [V, 1 + N, C], of the layer that the model reads.
        rows: {block as asked for: [V, N] fp32}, attention of [CLS].
        keys, queries: {block as asked for: [V, 1 + N, C] and [V, C]}, keys of all tokens and the query of [CLS].
        state: what a method's own blocks left.
    """

    hidden: Tensor
    rows: dict[int, Tensor]
    keys: dict[int, Tensor]
    queries: dict[int, Tensor]
    state: dict


NOTHING = Needs()


class TowerMemory:
    """What a tower made of views, for when the same ones come again; a reduction's `tower_memory`.

    Args:
        rows: blocks whose [CLS] row will be wanted, as they will be asked for; collected the first time.
        most_bytes: of what is kept; what comes when that is full is encoded every time.
    """

    def __init__(self, rows: tuple[int, ...] = (), most_bytes: int = 2**29):
        self.rows, self.most_bytes = rows, most_bytes
        self.seconds = 0.0  # that results took which came from the memory
        self.num_bytes, self._kept = 0, {}

    def run(self, tower: nn.Module, pixel_values: Tensor, feature_layer: int, needs: Needs) -> Seen:
        """`run_tower`, or what it gave before."""
        content = pixel_values.detach().contiguous().view(torch.uint8).cpu().numpy()
        shape = tuple(pixel_values.shape)
        key = (id(tower), feature_layer, pixel_values.dtype, shape, hashlib.blake2b(content).digest())
        if key in self._kept:
            seen, seconds = self._kept[key]
            if seen.rows.keys() >= set(needs.rows) and seen.keys.keys() >= set(needs.keys):
                self.seconds += seconds
                return seen
        start = _now(pixel_values)
        seen = run_tower(tower, pixel_values, feature_layer, needs._replace(rows=tuple({*self.rows, *needs.rows})))
        seconds = _now(seen.hidden) - start
        parts = [seen.hidden, *seen.rows.values(), *seen.keys.values(), *seen.queries.values()]
        num_bytes = sum(part.nbytes for part in parts)
        if key in self._kept or self.num_bytes + num_bytes <= self.most_bytes:
            self.num_bytes += 0 if key in self._kept else num_bytes
            self._kept[key] = seen, seconds
        return seen


def _now(states: Tensor) -> float:
    """Seconds, once all that was asked of the states' device is done."""
    if states.device.type == "cuda":
        torch.cuda.synchronize(states.device)
    return time.perf_counter()


def run_tower(
    tower: nn.Module,
    pixel_values: Tensor,
    feature_layer: int,
    needs: Needs = NOTHING,
    block: Callable | None = None,
    num: int = 0,
) -> Seen:
    """Run a CLIP tower up to the layer that is read, or to the last layer whose row is wanted.

    Args:
        tower: a transformers CLIPVisionModel.
        pixel_values: [V, 3, H, W].
        feature_layer: index into the tower's hidden states (-2: the output of the last block but one).
        needs: which rows and keys are wanted; negative layers count from the end.
        block: what runs a block, `Method.block`; None runs it as it is.
        num: tokens that such a method is to leave of every view.

    Raises:
        ValueError: for a layer that the tower does not have.
    """
    blocks = clip_blocks(tower)
    wanted = (*needs.rows, *needs.keys)
    for layer, most in [(feature_layer, len(blocks)), *((layer, len(blocks) - 1) for layer in wanted)]:
        if not -most - 1 <= layer <= most:
            raise ValueError(f"expected one of {len(blocks)} vision layers, got {layer}")
    num_run = feature_layer % (len(blocks) + 1)
    rows, keys = ({layer % len(blocks) for layer in layers} for layers in (needs.rows, needs.keys))
    last = max([num_run - 1, *rows, *keys])
    found_rows, found_keys, found_queries, state = {}, {}, {}, {}
    hidden = clip_entry(tower, tower.embeddings(pixel_values.to(device_of(tower.embeddings))))
    features = hidden
    for index, layer in enumerate(blocks[: last + 1]):
        is_own = block is not None and index < num_run
        if index in rows or index in keys:
            hidden = hidden.to(device_of(layer))
        mixed = hidden if is_own else over_time(layer, hidden)
        if index in rows:
            found_rows[index] = cls_row(layer, mixed)
        if index in keys:
            norm, to_query, to_key, _, _ = projections(layer)
            normed = norm(mixed)
            found_keys[index], found_queries[index] = to_key(normed), to_query(normed[:, 0])
        if is_own:
            hidden = block(layer, hidden, state, index, num_run, num)
        elif index < max(num_run, last):  # a last block that only gives its row need not run
            hidden = run_clip_block(layer, mixed, **({"is_mixed": True} if attends_over_time(layer) else {}))
        if index + 1 == num_run:
            features = hidden

    def as_asked(found: dict, layers: tuple[int, ...]) -> dict:
        return {layer: found[layer % len(blocks)].to(features.device) for layer in layers}

    keys, queries = as_asked(found_keys, needs.keys), as_asked(found_queries, needs.keys)
    return Seen(features, as_asked(found_rows, needs.rows), keys, queries, state)


def clip_views(
    reduction,
    tower: nn.Module,
    project: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    feature_layer: int,
    of_images: list[int],
    layouts: list[Layout | None] | None = None,
    texts: list | None = None,
) -> tuple[list[tuple[Views, list[int]]], Tensor]:
    """Run a CLIP tower for a reduction: what `Family.views` returns.

    Args:
        project: the model's projector, [V, n, C] -> [V, n, D].
        pixel_values: [V, 3, H, W].
        feature_layer: index into the tower's hidden states.
        of_images: views of each picture.
        layouts: how the crops of each lie, where one budget is for all crops of a picture.
        texts: of every view, where the method reads text.
    """
    method, num = reduction.fitted.method, reduction.fitted.num_kept
    if num == grid_of(tower)[0] * grid_of(tower)[1]:  # frames whose [CLS] alone is dropped
        seen = run_tower(tower, pixel_values, feature_layer)
    elif type(method).block is not Method.block:  # what it makes of a view is its own
        seen = run_tower(tower, pixel_values, feature_layer, method.needs, method.block, num)
    elif reduction.tower_memory is not None:
        seen = reduction.tower_memory.run(tower, pixel_values, feature_layer, method.needs)
    else:
        seen = run_tower(tower, pixel_values, feature_layer, method.needs)
    pixels = pixel_values.to(seen.hidden.device)

    def views_of(part: slice, layout: Layout | None) -> Views:
        def cut(found: dict) -> dict:
            return {layer: states[part] for layer, states in found.items()}

        return Views(
            pixels=pixels[part],
            features=seen.hidden[part, 1:],
            rows=cut(seen.rows),
            grid=grid_of(tower),
            project=project,
            cls=seen.hidden[part, 0],
            keys=cut(seen.keys),
            queries=cut(seen.queries),
            num_heads=tower.config.num_attention_heads,
            layout=layout,
            text=texts and texts[part],
            state=seen.state,
        )

    finite = seen.hidden.isfinite().all()
    if layouts is None:
        return [(views_of(slice(None), None), of_images)], finite
    batches, start = [], 0
    for number, layout in zip(of_images, layouts, strict=True):
        layout = layout and layout._replace(seen=layout.seen.to(pixels.device))
        batches.append((views_of(slice(start, start + number), layout), [number]))
        start += number
    return batches, finite
