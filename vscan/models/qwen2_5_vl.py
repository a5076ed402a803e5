"""Stock transformers Qwen2.5-VL: a windowed vision tower without [CLS] that takes images of any size, M-RoPE, Qwen2.

Qwen2-VL is the same but for its tower, in which every block has full attention. Patches are ranked by the attention
that they receive. The tower runs as it is; queries and keys are taken from the blocks that a method reads while it
does. A view is an image, or one step in time of a video.
"""

import copy
import inspect
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..compat import attention_implementation, pooled, vision_places, vision_windows
from ..config import ReductionConfig, count
from ..methods.base import Method, Views
from ..plan import Fitted
from ..select.attention import rotate, split_heads
from ..select.received import attention_received
from .encoded import EncodedImages
from .family import ShellFamily, encoded_by, reduce_views
from .install import swap_class
from .texts import texts_of_call


class ReducedTower:
    """A Qwen2.5-VL or Qwen2-VL vision tower whose views are reduced.

    Modifications:
    - `forward` collects the attention that patches receive in the blocks which the method reads, while a reduction is
      set, and lets the method reduce every view; the output's `kept` says which tokens of `pooler_output` are left, and
      `finite` whether all were finite.
    """

    reduction = None

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, texts: list | None = None, **kwargs):
        """Encode images.

        Args:
            hidden_states: [patches, C * T * P * P], the pixels.
            grid_thw: long [num_images, 3], steps in time, height and width of each image in patches.
            texts: of every view, where the method reads text.

        Returns:
            What the tower returns; `pooler_output` is [tokens, D] in raster order. Under a reduction it has `kept`,
            bool [tokens] or None where all are, and `finite`, bool [].
        """
        if self.reduction is None:
            return super().forward(hidden_states, grid_thw, **kwargs)
        fitted = self.reduction.fitted
        if not fitted.reduces_views:
            output = super().forward(hidden_states, grid_thw, **{**kwargs, "return_dict": True})
            output.kept, output.finite = None, output.pooler_output.isfinite().all()
            return output
        order = vision_windows(self, grid_thw, kwargs)
        layers = fitted.method.needs.rows
        scores = Scores(self.blocks[layer].attn for layer in layers)
        output = super().forward(hidden_states, grid_thw, **{**kwargs, "return_dict": True, "scores": scores})
        tokens = output.pooler_output
        rows = {}
        for layer in layers:
            found = scores.of[self.blocks[layer].attn]
            if found is None:
                block = layer % len(self.blocks)
                raise RuntimeError(
                    f"the attention of block {block} of {type(self).__name__} was not entered: something replaced its "
                    "forward, and its patches cannot be ranked"
                )
            row = found.to(tokens.device).unflatten(0, (len(tokens), -1)).mean(dim=1)
            rows[layer] = row if order is None else torch.empty_like(row).index_copy_(0, order.to(row.device), row)
        output.finite = tokens.isfinite().all()
        output.pooler_output, output.kept = reduce_images(
            self, hidden_states.to(tokens.device), tokens, rows, grid_thw.tolist(), texts
        )
        return output


class Scores:
    """What blocks find: {the attention of a block: [patches] fp32}. No mapping, of which accelerate would pass a copy.

    Args:
        attentions: of the blocks that are asked.
    """

    def __init__(self, attentions: Iterable[nn.Module]):
        self.of: dict[nn.Module, Tensor | None] = dict.fromkeys(attentions)


class RankedAttention:
    """The attention of a block of such a tower, which also says how much attention its patches receive.

    Modifications:
    - `forward` writes that into `scores`, where this module is asked; it computes queries and keys anyway.
    """

    reduction = None

    def forward(self, hidden_states: Tensor, *args, scores: Scores | None = None, **kwargs):
        if scores is None or self not in scores.of:
            return super().forward(hidden_states, *args, **kwargs)
        names = list(inspect.signature(super().forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        projected = self.qkv(hidden_states)
        query, key, _ = projected.unsqueeze(0).chunk(3, dim=-1)  # 1 N H*d
        head_dim = query.shape[-1] // self.num_heads
        cos, sin = (part.to(projected.device).float().unsqueeze(0) for part in given["position_embeddings"])
        query, key = (rotate(split_heads(part.float(), head_dim), cos, sin)[0] for part in (query, key))  # H N d
        if projected.device.type != "cpu":  # as the attention itself takes them, on the tensor cores
            query, key = query.to(projected.dtype), key.to(projected.dtype)
        lengths = given["cu_seqlens"].diff().tolist()
        scores.of[self] = attention_received(query, key, lengths, self.scaling)
        same = copy.copy(self)  # with the projection at hand in place of the module that made it
        same._modules = {**self._modules, "qkv": Given(projected)}
        return super(RankedAttention, same).forward(hidden_states, *args, **kwargs)


class Given(nn.Module):
    """Gives what it was made with, whatever it is called with."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.states


def reduce_images(
    tower,
    pixel_values: Tensor,
    tokens: Tensor,
    rows: dict[int, Tensor],
    grids: list[list[int]],
    texts: list | None,
) -> tuple[Tensor, Tensor]:
    """Reduce each image to its budget; images vary in size, so that they come one after another.

    Args:
        tower: the tower under a reduction.
        pixel_values: [patches, C * T * P * P].
        tokens: [N, D], what the tower's merger gives, in raster order.
        rows: {layer as the method wrote it: [N] fp32}.
        grids: steps in time, height and width of each image in patches.
        texts: of every view, where the method reads text.

    Returns:
        [N, D], zeros where a token is dropped; and which are left, bool [N].
    """
    fitted, side = tower.reduction.fitted, tower.spatial_merge_size
    lengths = [steps * height * width for steps, height, width in grids]
    sizes = [length // side**2 for length in lengths]
    of_images = {layer: row.split(sizes) for layer, row in rows.items()}
    reduced, left, texts = [], [], texts and iter(texts)
    for image, (pixels, features) in enumerate(zip(pixel_values.split(lengths), tokens.split(sizes), strict=True)):
        steps, height, width = grids[image]
        views = Views(
            pixels=pixels.unflatten(0, (steps, -1)),
            features=features.unflatten(0, (steps, -1)),
            rows={layer: row[image].unflatten(0, (steps, -1)) for layer, row in of_images.items()},
            grid=(height // side, width // side),
            project=lambda states: states,
            text=texts and list(islice(texts, steps)),
        )
        features, kept, _ = reduce_views(fitted, views, [steps])
        reduced.append(features.flatten(0, 1))
        left.append(kept.flatten())
    return torch.cat(reduced), torch.cat(left)


class Qwen2_5_VL(ShellFamily):
    """Qwen2_5_VL- and Qwen2VLForConditionalGeneration: images, and videos, of which every step in time is a view."""

    pixels: ClassVar = {"image": "pixel_values", "video": "pixel_values_videos"}

    def __init__(self, model: nn.Module):
        super().__init__(model)
        kinds = set(self.base.language_model.config.layer_types)
        if kinds != {"full_attention"}:
            raise ValueError(f"layer_types: expected full attention in every layer, got {', '.join(sorted(kinds))}")

    def defaults(self, method: str) -> dict:
        """As published for Qwen2.5-VL: local scores from the first block with full attention, global ones from the last
        block, windows of 4 x 4 with a cap. Nothing is published for Qwen2-VL: its local scores come from the block at
        the same depth, the eighth of 32."""
        vision = self.base.config.vision_config
        local = getattr(vision, "fullatt_block_indexes", [max(0, vision.depth // 4 - 1)])[0]
        # The last block but one sees windows only, and cannot rank a whole image.
        return {
            "vscan": {"local_layer": local, "global_layer": -1, "window": 4, "capped": True},
            **{name: {"attention_layer": -1} for name in ("vispruner", "fastervlm", "scope")},
        }.get(method, {})

    def fit(self, config: ReductionConfig, method: Method) -> Fitted:
        return Fitted.of(
            config,
            method,
            num_tokens=None,
            num_vision_layers=len(self.base.visual.blocks),
            text_config=self.base.language_model.config,
            has_cls=False,
            keeps_positions=True,
            rank_with_rotary=False,
        )

    def encode(self, reduction, name: str, original: Callable, call: dict) -> EncodedImages:
        views = call[f"{name}_grid_thw"][:, 0].tolist()
        if reduction.read is not None and reduction.fitted.reduces_views:
            sizes = (call[f"{name}_grid_thw"].prod(dim=1) // self.base.visual.spatial_merge_size**2).tolist()
            call = {**call, "texts": texts_of_call(reduction, self.base.config, name, self.pixels, sizes, views)}
        tower, pixels, grid, fixed = self.base.visual, self.pixels[name], f"{name}_grid_thw", {}
        reads = attention_implementation(tower) in ("sdpa", "eager")  # lengths on the host; others, on the device
        if records := reduction.capture is not None and reads:
            call = {**call, grid: call[grid].cpu()}  # what the host reads, it reads once

        def run(given: Tensor) -> tuple[list[Tensor], None]:
            if records and not fixed:
                fixed.update(vision_places(tower, call[grid], given.device))
            output = original(**{**call, **fixed, pixels: given, "return_dict": True})
            images = pooled(output)
            if not hasattr(output, "kept"):
                raise RuntimeError(
                    f"the reduced {type(tower).__name__} was not entered: something replaced its forward, and "
                    "nothing would be reduced in it"
                )
            return [*images, output.finite, *([] if output.kept is None else [output.kept])], None

        key = (name, tuple(map(tuple, call[grid].tolist()))) if records else ()
        reason = None if reads else f"{attention_implementation(tower)} attention in the vision tower"
        found, _ = encoded_by(reduction, run, call[pixels], [tower], key, reason)
        images, (finite, *kept) = found[: len(views)], found[len(views) :]
        sizes, budget = [len(image) for image in images], reduction.fitted.visual_tokens
        return EncodedImages(
            pooler_output=images,
            kept=list(kept[0].split(sizes)) if kept else None,
            num_views=views,
            num_kept=[n * count(size // n, budget) for size, n in zip(sizes, views, strict=True)],
            finite=finite,
        )

    def install(self, reduction) -> Callable[[], None]:
        with ExitStack() as undo:
            undo.callback(super().install(reduction))
            swap_class(undo, self.base.visual, ReducedTower, reduction)
            if reduction.fitted.reduces_views:
                for block in self.base.visual.blocks:
                    swap_class(undo, block.attn, RankedAttention, reduction)
            return undo.pop_all().close
