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

BLOCKS, HEADS, WIDTH, PATCH, SIDE = 3, 2, 16, 2, 3


def clip_tower_of(model: nn.Module) -> nn.Module | None:
    """The CLIP tower of a LLaVA, stock or in the original format; None for another model."""
    tower = getattr(model.base_model, "vision_tower", None)
    tower = getattr(tower, "vision_tower", tower)
    return tower if getattr(getattr(tower, "config", None), "model_type", None) == "clip_vision_model" else None


def check_clip_tower(tower: nn.Module) -> None:
    """Run the self-test for a CLIP tower, unless it has passed before in this process.

    Raises:
        LibraryChanged: naming what does not fit.
    """
    cls = type(tower)
    once(cls.__name__, (cls, tower.config.hidden_act, *functions(cls)), lambda: _try(cls, tower.config))


def _try(cls: type, config) -> None:
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.num_attention_heads = BLOCKS, HEADS
    small.hidden_size, small.intermediate_size, small.attention_dropout = WIDTH, 24, 0.0
    small.image_size, small.patch_size, small.num_channels = PATCH * SIDE, PATCH, 3
    random = torch.Generator().manual_seed(0)
    model = copy_of(cls, small, "eager", random)
    pixels = torch.randn((2, 3, PATCH * SIDE, PATCH * SIDE), generator=random, dtype=torch.float32)
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    seen = run_tower(model, pixels, -2, Needs(rows=(0, -1)))
    same("the features of a CLIP tower", output.hidden_states[-2], seen.hidden)
    apart = run_tower(model, pixels, -2, block=ToMe().block, num=SIDE**2).hidden
    same("the features of a CLIP tower taken apart", output.hidden_states[-2], apart)
    for layer, row in seen.rows.items():
        same("a row of [CLS] in a CLIP tower", output.attentions[layer][:, :, 0, 1:].mean(dim=1), row)
