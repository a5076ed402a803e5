"""What `vscan.profile` times on Qwen2.5-VL: images of any size in one prompt, budgets as shares, a windowed tower.

The tower takes most of the time and is the same in every row, so it may be cut (`vision_layers`) by whole runs of seven
windowed blocks and one with full attention. Its time at full depth is then worked out from the parts.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig

from ..compat import BaseModelOutputWithPooling
from ..config import ReductionConfig, count
from ..methods import make_method
from ..models.qwen2_5_vl import RankedAttention, ReducedTower
from ..models.refusals import replace_method
from ..plan import scheduled
from ..prompt import VisualPrompt
from .bench import AFTER, BEFORE, Bench, Row, random_model, read, tokens_per_layer

# The published checkpoints' decoders; their towers differ in the width of the output alone.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
MODELS = {
    "qwen2.5-vl-3b": dict(zip(SIZES, (2048, 36, 16, 2, 11008), strict=True)),
    "qwen2.5-vl-7b": dict(zip(SIZES, (3584, 28, 28, 4, 18944), strict=True)),
    "qwen2.5-vl-32b": dict(zip(SIZES, (5120, 64, 40, 8, 27648), strict=True)),
}
VISION = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
VISION_DEPTH, VISION_PERIOD = 32, 8  # blocks; every eighth has full attention
AVERAGES = [0.333, 0.222, 0.111]
UNIT = 28  # pixels of a merged token's side


def build(
    name: str,
    num_layers: int,
    vision_layers: int,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str | None,
):
    """A Qwen2.5-VL of real size with random weights.

    Args:
        num_layers, vision_layers: depth of the decoder and of the tower.
    """
    small = name == "qwen2.5-vl-3b"
    text = MODELS[name] | {
        "num_hidden_layers": num_layers,
        "vocab_size": 151936 if small else 152064,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = VISION | {
        "depth": vision_layers,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": list(range(VISION_PERIOD - 1, vision_layers, VISION_PERIOD)),
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=small)
    return random_model(config, dtype, device, attn_implementation)


def grid_of(width: int, height: int) -> tuple[int, int, int]:
    """Steps in time, height and width in patches of an image of so many pixels, sides rounded to whole tokens."""
    return 1, 2 * max(1, round(height / UNIT)), 2 * max(1, round(width / UNIT))


def plan(method: str, averages: list[float], fields: dict, num_layers: int, images: list[int]) -> list[Row]:
    """Dense; and for every average, the reduced model and its floor.

    Args:
        averages: shares of the prompt's visual tokens.
        images: tokens of each image of a prompt.

    Raises:
        ValueError: for an average that is no share or cannot be met, or a hyper-parameter that is none.
    """
    made = make_method(method, fields)
    rows = [Row("dense", 1.0, [sum(images)] * num_layers)]
    for average in averages:
        if isinstance(average, int) or not 0 < average < 1:
            raise ValueError(f"--average: expected shares between 0 and 1 such as 0.222, got {average}")
        config = scheduled(ReductionConfig(method, average=average, fields=fields), made, num_layers, None)
        entering = sum(count(image, config.visual_tokens) for image in images)
        visual = tokens_per_layer(made, config, num_layers, entering)
        rows += [Row("reduced", average, visual, config), Row("floor", average, visual)]
    return rows


class Replay(nn.Module):
    """What stands in for a tower that has run.

    Modifications:
    - `forward` calls the attention of the blocks that a method reads, on the queries, keys and values that it had, and
      returns the tokens that the merger gave.
    """

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, scores=None, **kwargs):
        tokens, calls = self.replayed
        for block, (keywords, states) in calls.items():
            self.blocks[block].attn(states, scores=scores, **keywords)
        return BaseModelOutputWithPooling(pooler_output=tokens)


class Idle(nn.Module):
    """Stands in for an attention that has run: computes nothing."""

    def forward(self, hidden_states: Tensor, cu_seqlens=None, position_embeddings=None, **kwargs):
        return hidden_states


class ReplayedAttention(RankedAttention, Idle):
    """A ranked attention without the attention: the ranking is left."""


class ReplayedTower(ReducedTower, Replay):
    """A reduced tower without the tower: scores, selection and merging are left."""


class QwenBench(Bench):
    """A Qwen2.5-VL, a batch of equal prompts with images, and what each row does with them.

    Args:
        grids: steps in time, height and width of each image of a prompt, in patches.
        vision_depth: blocks of the whole tower, where only some of them are here.
    """

    stage = "scores+selection+merging"

    def __init__(
        self, model: nn.Module, grids: list[tuple[int, int, int]], batch_size: int, vision_depth: int | None = None
    ):
        base = model.base_model
        self.model, self.num_views, self.batch_size, self.vision_depth = model, 1, batch_size, vision_depth
        self.decoder, self.visual_tower = base.language_model, base.visual
        self.config, self.device = self.decoder.config, self.decoder.embed_tokens.weight.device
        self.grids = torch.tensor(grids * batch_size, device=self.device)
        self.images = [steps * height * width // base.visual.spatial_merge_unit for steps, height, width in grids]
        self.num_tokens, self.num_text = sum(self.images), BEFORE + AFTER + 2 * len(grids)
        patch = base.visual.patch_embed
        width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
        self.pixels = torch.randn(int(self.grids.prod(dim=1).sum()), width, device=self.device).to(model.dtype)
        start, end, place = (
            getattr(model.config, f"{name}_token_id") for name in ("vision_start", "vision_end", "image")
        )
        images = [token for image in self.images for token in (start, *[place] * image, end)]
        ids = torch.tensor([[1] * BEFORE + images + [1] * AFTER] * batch_size, device=self.device)
        self.visual = ids == place  # B L
        self.positions, _ = base.get_rope_index(ids, self.visual.int(), self.grids)
        self.text = self.decoder.embed_tokens(ids).detach()  # B L D; placeholders are written over
        self.tokens, self.calls = None, {}  # what `record` keeps
        self.kept = None  # of the tokens that the tower gave last, which are left

    def __str__(self) -> str:
        images = " + ".join(map(str, self.images))
        vision = f"{len(self.visual_tower.blocks)} of {self.vision_depth} vision blocks, " if self.vision_depth else ""
        return f"{vision}{images} visual and {self.num_text} text tokens"

    def tower(self) -> Tensor:
        """The tower as it stands, reduced where a reduction is in force: [tokens, D]."""
        texts = read(getattr(self.visual_tower, "reduction", None), int(self.grids[:, 0].sum()))
        output = self.visual_tower(self.pixels, self.grids, **({"texts": texts} if texts else {}))
        self.kept = getattr(output, "kept", None)
        return output.pooler_output

    def outside_blocks(self) -> Tensor:
        """The tower without its blocks: patch embedding, positions and merger."""
        blocks, self.visual_tower.blocks = self.visual_tower.blocks, nn.ModuleList()
        try:
            return self.tower()
        finally:
            self.visual_tower.blocks = blocks

    def record(self, blocks: tuple[int, ...]) -> tuple[Tensor, dict[int, tuple[dict, Tensor]]]:
        """What the dense tower computes: its tokens, and of these blocks what attention was given and its q, k and v.

        The tower is run once for all calls, and again for blocks that no call before asked for.
        """
        missing = [block for block in blocks if block not in self.calls]
        if missing or self.tokens is None:
            keywords, states = {}, {}
            with ExitStack() as undo:
                for block in missing:
                    attention = self.visual_tower.blocks[block].attn

                    def before(module, args, given, block=block):
                        keywords[block] = given

                    def after(module, args, output, block=block):
                        states[block] = output

                    undo.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
                    undo.callback(attention.qkv.register_forward_hook(after).remove)
                tower = self.visual_tower
                dense = super(ReducedTower, tower) if isinstance(tower, ReducedTower) else tower
                self.tokens = dense.forward(self.pixels, self.grids).pooler_output
            self.calls |= {block: (keywords[block], states[block]) for block in missing}
        return self.tokens, {block: self.calls[block] for block in blocks}

    def selection(self, reduction) -> Callable[[], Tensor]:
        """What a reduction does beside the tower: scores, selection, merging and the layout. [tokens, D]"""
        tower = self.visual_tower
        blocks = tuple(dict.fromkeys(layer % len(tower.blocks) for layer in reduction.method.needs.rows))
        recorded = self.record(blocks)

        def select() -> Tensor:
            with ExitStack() as undo:
                for block in recorded[1]:
                    attention = tower.blocks[block].attn
                    undo.callback(setattr, attention, "__class__", type(attention))
                    attention.__class__ = ReplayedAttention
                    replace_method(undo, attention.qkv, "forward", lambda given: given)
                undo.callback(setattr, tower, "__class__", type(tower))
                undo.callback(delattr, tower, "replayed")
                tower.replayed, tower.__class__ = recorded, ReplayedTower
                return self.tower()

        return select

    def embed(self, row: Row, reduction) -> Tensor:
        """What the decoder is given, [B, L, D], from what the tower computed once."""
        if reduction is not None and reduction.fitted.reduces_views:
            return self.prompt(row, self.selection(reduction)())
        self.kept = None
        return self.prompt(row, self.record(())[0])

    def whole(self, row: Row, reduction):
        """From pixels to the cache."""
        return self.prefill(row, self.prompt(row, self.tower()))

    def prompt(self, row: Row, tokens: Tensor) -> Tensor:
        """Visual tokens [B*N, D] between the text; no dropped token comes before the floor."""
        embeds = self.text.clone()
        embeds[self.visual] = tokens
        row.kept = None if self.kept is None else self.visual.masked_scatter(self.visual, self.kept)
        return embeds[:, : row.visual[0] + self.num_text] if row.kind == "floor" else embeds

    def keywords(self, row: Row, embeds: Tensor) -> dict:
        """What the decoder is told about a prompt beside its embeddings."""
        if row.kind == "floor":
            return {}
        known = {"position_ids": self.positions}
        if row.kind == "reduced":
            counts = (len(self.images), self.num_tokens, row.visual[0], embeds.shape[1])
            known["visual_prompt"] = VisualPrompt(
                self.visual, *([count] * self.batch_size for count in counts), row.kept
            )
        return known
