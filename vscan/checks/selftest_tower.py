"""Whether a CLIP tower is still run as the installed transformers runs it: tried on a small copy of three blocks.

The tower is run block by block here, no further than it is read, and rows of [CLS] are worked out beside it. Both are
compared with what the stock forward gives under eager attention: hidden states, and the weights themselves.
"""

import copy

import torch
from torch import nn

from ..methods.base import Needs
from ..methods.tome import ToMe
from ..models.towers import run_tower
from .selftest import copy_of, functions, once, same

BLOCKS, HEADS, WIDTH, PATCH, SIDE, FRAMES = 3, 2, 16, 2, 3, 2


def clip_towers_of(model: nn.Module) -> list[nn.Module]:
    """The CLIP towers of a LLaVA, stock or in the original format; none for another model."""
    found = [getattr(model.base_model, name, None) for name in ("vision_tower", "image_tower", "video_tower")]
    towers = [getattr(tower, "vision_tower", tower) for tower in found if tower is not None]
    return [tower for tower in towers if getattr(tower.config, "model_type", None) == "clip_vision_model"]


def check_clip_tower(tower: nn.Module) -> None:
    """Run the self-test for a CLIP tower, unless it has passed before in this process.

    Raises:
        LibraryChanged: naming what does not fit.
    """
    cls = type(tower)
    frames = getattr(tower.config, "num_frames", None) if getattr(tower.config, "add_time_attn", False) else None
    key = (cls, tower.config.hidden_act, frames is None, *functions(cls))
    once(cls.__name__, key, lambda: _try(cls, tower.config, FRAMES if frames else None))


def _try(cls: type, config, num_frames: int | None) -> None:
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.num_attention_heads = BLOCKS, HEADS
    small.hidden_size, small.intermediate_size, small.attention_dropout = WIDTH, 24, 0.0
    small.image_size, small.patch_size, small.num_channels = PATCH * SIDE, PATCH, 3
    if num_frames is not None:
        small.num_frames = num_frames
    random = torch.Generator().manual_seed(0)
    model = copy_of(cls, small, "eager", random)
    pixels = torch.randn((FRAMES, 3, PATCH * SIDE, PATCH * SIDE), generator=random, dtype=torch.float32)
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    seen = run_tower(model, pixels, -2, Needs(rows=(0, -1)))
    same("the features of a CLIP tower", output.hidden_states[-2], seen.hidden)
    apart = run_tower(model, pixels, -2, block=ToMe().block, num=SIDE**2).hidden
    same("the features of a CLIP tower taken apart", output.hidden_states[-2], apart)
    each = len(output.attentions) // BLOCKS  # a block that attends over time does so first
    for layer, row in seen.rows.items():
        weights = output.attentions[each - 1 :: each][layer]
        same("a row of [CLS] in a CLIP tower", weights[:, :, 0, 1:].mean(dim=1), row)
