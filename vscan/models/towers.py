"""Stage 1 on a CLIP vision tower: run it no further than needed, collect [CLS] rows on the way, let the method reduce
every view, and hand over full-size features and which of them are kept."""

import hashlib
import time
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..compat import clip_blocks, clip_entry, run_clip_block
from ..methods.base import Views, encode_in_place
from ..select.attention import cls_row, device_of


def grid_of(tower: nn.Module) -> tuple[int, int]:
    """Height and width of a CLIP tower's grid, in tokens."""
    side = tower.config.image_size // tower.config.patch_size
    return side, side


class TowerMemory:
    """What a tower made of views, for when the same ones come again in the same batch; in force inside `with`.

    Args:
        row_layers: blocks whose [CLS] row will be wanted, as they will be asked for; collected the first time.
        most_bytes: of what is kept; what comes when that is full is encoded every time.
    """

    def __init__(self, row_layers: tuple[int, ...] = (), most_bytes: int = 2**29):
        self.row_layers, self.most_bytes = row_layers, most_bytes
        self.seconds = 0.0  # that results took which came from the memory
        self.num_bytes, self._kept = 0, {}

    def __enter__(self) -> "TowerMemory":
        self._token = memory_in_force.set(self)
        return self

    def __exit__(self, *error) -> None:
        memory_in_force.reset(self._token)

    def run(
        self, tower: nn.Module, pixel_values: Tensor, feature_layer: int, row_layers: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """`run_tower`, or what it gave before."""
        content = pixel_values.detach().contiguous().view(torch.uint8).cpu().numpy()
        shape = tuple(pixel_values.shape)
        key = (id(tower), feature_layer, pixel_values.dtype, shape, hashlib.blake2b(content).digest())
        if key in self._kept:
            features, rows, seconds = self._kept[key]
            if rows.keys() >= set(row_layers):
                self.seconds += seconds
                return features, {layer: rows[layer] for layer in row_layers}
        start = _now(pixel_values)
        layers = tuple(dict.fromkeys((*self.row_layers, *row_layers)))
        features, rows = _run_tower(tower, pixel_values, feature_layer, layers)
        seconds = _now(features) - start
        num_bytes = features.nbytes + sum(row.nbytes for row in rows.values())
        if key in self._kept or self.num_bytes + num_bytes <= self.most_bytes:
            self.num_bytes += 0 if key in self._kept else num_bytes
            self._kept[key] = features, rows, seconds
        return features, {layer: rows[layer] for layer in row_layers}


memory_in_force: ContextVar[TowerMemory | None] = ContextVar("memory_in_force", default=None)


def _now(states: Tensor) -> float:
    """Seconds, once all that was asked of the states' device is done."""
    if states.device.type == "cuda":
        torch.cuda.synchronize(states.device)
    return time.perf_counter()


def run_tower(
    tower: nn.Module, pixel_values: Tensor, feature_layer: int, row_layers: tuple[int, ...] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a CLIP tower up to the layer that is read, or to the last layer whose row is wanted.

    Args:
        tower: a transformers CLIPVisionModel.
        pixel_values: [V, 3, H, W].
        feature_layer: index into the tower's hidden states (-2: the output of the last block but one).
        row_layers: blocks whose [CLS] row is wanted; negative ones count from the end.

    Returns:
        Hidden states [V, 1 + N, C], and {block as asked for: [V, N] fp32}.

    Raises:
        ValueError: for a layer that the tower does not have.
    """
    memory = memory_in_force.get()
    run = _run_tower if memory is None else memory.run
    return run(tower, pixel_values, feature_layer, row_layers)


def _run_tower(
    tower: nn.Module, pixel_values: Tensor, feature_layer: int, row_layers: tuple[int, ...]
) -> tuple[Tensor, dict[int, Tensor]]:
    blocks = clip_blocks(tower)
    for layer, most in [(feature_layer, len(blocks)), *((layer, len(blocks) - 1) for layer in row_layers)]:
        if not -most - 1 <= layer <= most:
            raise ValueError(f"expected one of {len(blocks)} vision layers, got {layer}")
    num_run = feature_layer % (len(blocks) + 1)
    wanted = {layer % len(blocks) for layer in row_layers}
    last = max([num_run - 1, *wanted])
    rows = {}
    hidden = clip_entry(tower, tower.embeddings(pixel_values.to(device_of(tower.embeddings))))
    features = hidden
    for index, block in enumerate(blocks[: last + 1]):
        if index in wanted:
            hidden = hidden.to(device_of(block))
            rows[index] = cls_row(block, hidden)
        if index < max(num_run, last):  # a last block that only gives its row need not run
            hidden = run_clip_block(block, hidden)
        if index + 1 == num_run:
            features = hidden
    return features, {layer: rows[layer % len(blocks)] for layer in row_layers}


def encode_views(
    reduction, tower: nn.Module, project: Callable[[Tensor], Tensor], pixel_values: Tensor, feature_layer: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode views and reduce each to the reduction's budget.

    Args:
        reduction: a `vscan.Reduction` that keeps fewer tokens than there are.
        tower: a CLIPVisionModel.
        project: the model's projector, [V, n, C] -> [V, n, D].
        pixel_values: [V, 3, H, W].
        feature_layer: index into the tower's hidden states.

    Returns:
        [V, N, D] in raster order, a kept token in its slot and zeros in all others; which are kept, bool [V, N]; and
        whether all that the tower gave is finite, bool [].
    """
    hidden, rows = run_tower(tower, pixel_values, feature_layer, reduction.method.cls_layers)
    features = hidden[:, 1:]
    rows = {layer: row.to(features.device) for layer, row in rows.items()}
    views = Views(pixel_values.to(features.device), features, rows, grid_of(tower), project)
    return *encode_in_place(reduction.method, views, reduction.num_kept), hidden.isfinite().all()
