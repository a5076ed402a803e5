"""Stock transformers Qwen2.5-VL: a windowed vision tower without [CLS] that takes images of any size, M-RoPE, Qwen2.

Qwen2-VL is the same but for its tower, in which every block has full attention. Patches are ranked by the attention
that they receive. The tower runs as it is; queries and keys are taken from the blocks that a method reads while it
does. A view is an image, or one step in time of a video.
"""

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..compat import pooled, vision_windows
from ..config import count
from ..methods.base import Views, encode_in_place
from ..select.attention import rotate, split_heads
from ..select.received import attention_received
from .encoded import EncodedImages, Modality
from .install import install_on_shell, swap_class

# While a reduced tower runs: {block: what its attention was given, then the score of each patch}; one for every thread.
scores_of_blocks: ContextVar[dict | None] = ContextVar("scores_of_blocks", default=None)


class ReducedTower:
    """A Qwen2.5-VL or Qwen2-VL vision tower whose views are reduced.

    Modifications:
    - `forward` collects the attention that patches receive in the blocks which the method reads, while a reduction is
      set, and lets the method reduce every view; the output's `kept` says which tokens of `pooler_output` are left, and
      `finite` whether all were finite.
    """

    reduction = None

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **kwargs):
        """Encode images.

        Args:
            hidden_states: [patches, C * T * P * P], the pixels.
            grid_thw: long [num_images, 3], steps in time, height and width of each image in patches.

        Returns:
            What the tower returns; `pooler_output` is [tokens, D] in raster order. Under a reduction it has `kept`,
            bool [tokens] or None where all are, and `finite`, bool [].
        """
        if self.reduction is None:
            return super().forward(hidden_states, grid_thw, **kwargs)
        if not self.reduction.reduces_views:
            output = super().forward(hidden_states, grid_thw, **{**kwargs, "return_dict": True})
            output.kept, output.finite = None, output.pooler_output.isfinite().all()
            return output
        order = vision_windows(self, grid_thw, kwargs)
        scores = {}
        token = scores_of_blocks.set(scores)
        try:
            output = super().forward(hidden_states, grid_thw, **{**kwargs, "return_dict": True})
        finally:
            scores_of_blocks.reset(token)
        tokens = output.pooler_output
        rows = {}
        for layer in self.reduction.method.cls_layers:
            block = layer % len(self.blocks)
            if not isinstance(scores.get(block), Tensor):
                raise RuntimeError(
                    f"the attention of block {block} of {type(self).__name__} was not entered: something replaced its "
                    "forward, and its patches cannot be ranked"
                )
            row = scores[block].to(tokens.device).unflatten(0, (len(tokens), -1)).mean(dim=1)
            rows[layer] = row if order is None else torch.empty_like(row).index_copy_(0, order.to(row.device), row)
        output.finite = tokens.isfinite().all()
        output.pooler_output, output.kept = reduce_images(
            self, hidden_states.to(tokens.device), tokens, rows, grid_thw.tolist()
        )
        return output


def reduce_images(
    tower, pixel_values: Tensor, tokens: Tensor, rows: dict[int, Tensor], grids: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Reduce each image to its budget; images vary in size, so that they come one after another.

    Args:
        tower: the tower under a reduction.
        pixel_values: [patches, C * T * P * P].
        tokens: [N, D], what the tower's merger gives, in raster order.
        rows: {layer as the method wrote it: [N] fp32}.
        grids: steps in time, height and width of each image in patches.

    Returns:
        [N, D], zeros where a token is dropped; and which are left, bool [N].
    """
    reduction, side = tower.reduction, tower.spatial_merge_size
    lengths = [steps * height * width for steps, height, width in grids]
    sizes = [length // side**2 for length in lengths]
    of_images = {layer: row.split(sizes) for layer, row in rows.items()}
    reduced, left = [], []
    for image, (pixels, features) in enumerate(zip(pixel_values.split(lengths), tokens.split(sizes), strict=True)):
        steps, height, width = grids[image]
        num = count(sizes[image] // steps, reduction.config.visual_tokens)
        if num < sizes[image] // steps:
            views = Views(
                pixel_values=pixels.unflatten(0, (steps, -1)),
                features=features.unflatten(0, (steps, -1)),
                rows={layer: row[image].unflatten(0, (steps, -1)) for layer, row in of_images.items()},
                grid=(height // side, width // side),
                project=lambda states: states,
            )
            features, kept = (part.flatten(0, 1) for part in encode_in_place(reduction.method, views, num))
        else:
            kept = torch.ones(len(features), dtype=torch.bool, device=features.device)
        reduced.append(features)
        left.append(kept)
    return torch.cat(reduced), torch.cat(left)


def watch(undo: ExitStack, tower: nn.Module, block: int) -> None:
    """Collect the attention that patches receive in one block, from the queries and keys that it computes anyway."""
    attention = tower.blocks[block].attn

    def before(module, args, kwargs):
        found = scores_of_blocks.get()
        if found is not None:
            found[block] = kwargs

    def after(module, args, output):
        found = scores_of_blocks.get()
        if found is None:
            return
        query, key, _ = output.unsqueeze(0).chunk(3, dim=-1)  # 1 N H*d
        head_dim = query.shape[-1] // attention.num_heads
        cos, sin = (part.to(output.device).float().unsqueeze(0) for part in found[block]["position_embeddings"])
        query, key = (rotate(split_heads(part.float(), head_dim), cos, sin)[0] for part in (query, key))  # H N d
        lengths = found[block]["cu_seqlens"].diff().tolist()
        found[block] = attention_received(query, key, lengths, attention.scaling)

    undo.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
    undo.callback(attention.qkv.register_forward_hook(after).remove)


def defaults(model: nn.Module, method: str) -> dict:
    """The methods' hyper-parameters as published for Qwen2.5-VL: local scores from the first block with full attention,
    global ones from the last block, windows of 4 x 4 with a cap. Nothing is published for Qwen2-VL: its local scores
    come from the block at the same depth, the eighth of 32."""
    if method == "vscan":
        vision = model.config.vision_config
        local = getattr(vision, "fullatt_block_indexes", [max(0, vision.depth // 4 - 1)])[0]
        return {"local_layer": local, "global_layer": -1, "window": 4, "capped": True}
    # The last block but one sees windows only, and cannot rank a whole image.
    return {"attention_layer": -1} if method in ("vispruner", "fastervlm") else {}


def fit(reduction, model: nn.Module) -> nn.Module:
    """Check that a Qwen2.5-VL or Qwen2-VL is put together in a way supported here, and fit the reduction to it.

    Returns:
        The multimodal model without its head.

    Raises:
        ValueError: naming what was expected and what came.
    """
    base = model.base_model
    if base is model:
        raise ValueError(f"expected the model that generates, got {type(model).__name__} inside it")
    text_config = base.language_model.config
    kinds = set(text_config.layer_types)
    if kinds != {"full_attention"}:
        raise ValueError(f"layer_types: expected full attention in every layer, got {', '.join(sorted(kinds))}")
    reduction.fit(
        num_tokens=None,
        num_vision_layers=len(base.visual.blocks),
        num_decoder_layers=text_config.num_hidden_layers,
        compact_positions=False,
        text_config=text_config,
        rank_with_rotary=False,
    )
    return base


def modality(base: nn.Module, reduction, name: str, pixels: str) -> Modality:
    """Images or videos of a Qwen2.5-VL: its own features, and which of them its tower left."""
    original = getattr(base, f"get_{name}_features")
    grid_name = f"{name}_grid_thw"

    def encode(**kwargs):
        grids = kwargs[grid_name]
        output = original(**{pixels: kwargs[pixels], grid_name: grids, "return_dict": True})
        images, views = pooled(output), grids[:, 0].tolist()
        if not hasattr(output, "kept"):
            raise RuntimeError(
                f"the reduced {type(base.visual).__name__} was not entered: something replaced its forward, and "
                "nothing would be reduced in it"
            )
        sizes, budget = [len(image) for image in images], reduction.config.visual_tokens
        return EncodedImages(
            pooler_output=images,
            kept=None if output.kept is None else list(output.kept.split(sizes)),
            num_views=views,
            num_kept=[n * count(size // n, budget) for size, n in zip(sizes, views, strict=True)],
            finite=output.finite,
        )

    return Modality(name, pixels, encode)


def install(model: nn.Module, reduction) -> Callable[[], None]:
    """Install a reduction on a Qwen2_5_VL- or Qwen2VLForConditionalGeneration; returns the function that undoes it."""
    base = fit(reduction, model)
    modalities = [
        modality(base, reduction, "image", "pixel_values"),
        modality(base, reduction, "video", "pixel_values_videos"),
    ]
    with ExitStack() as undo:
        undo.callback(install_on_shell(model, reduction, modalities))
        swap_class(undo, base.visual, ReducedTower, reduction)
        if reduction.reduces_views:
            for block in {layer % len(base.visual.blocks) for layer in reduction.method.cls_layers}:
                watch(undo, base.visual, block)
        return undo.pop_all().close
