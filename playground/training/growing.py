"""A deep, thin decoder grown from the trained one of tiny-llava, and trained on: tiny-llava-deep.

Answers alone teach a decoder of 28 layers little in the hours of a CPU. So each of the trained layers is taken apart:
its heads go one after another into thin layers, its feed-forward part in halves into the last two of them. What a thin
layer has beyond that begins with random looks and no say (its output matrices are zero there). The new decoder is not
quite the old one, because later parts see what earlier ones have added; training repairs that in some ten steps.

Five of eight layers, by which names are looked up, become the first fourteen of 28, the other three the rest: names are
known at the middle, and answers settle after it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vscan.compat import projections

from ..scenes.world import GRID
from .decoder import Decoder, collate, evaluate
from .export import load_exported
from .joint import SIDES, Joint
from .packing import Packer, answer_loss
from .running import Stage, draw_batch, run_stage
from .sizes import DEEP, TINY

THIN_LAYERS = (2, 3, 3, 3, 3, 5, 5, 4)  # that each trained layer becomes
assert sum(THIN_LAYERS) == DEEP.num_layers
assert sum(THIN_LAYERS[: TINY.named_after]) == DEEP.named_after


@torch.no_grad()
def take_apart(layer: nn.Module, thin: list[nn.Module]) -> None:
    """Give the parts of a decoder layer to two or more new ones with half its feed-forward part."""
    of_old, old = projections(layer), layer.self_attn
    head_dim = of_old.head_dim
    num_heads = of_old.query.out_features // head_dim
    heads = [*np.array_split(np.arange(num_heads), len(thin) - 1), np.array([], int)]
    for index, (part, mine) in enumerate(zip(thin, heads, strict=True)):
        of_new, new = projections(part), part.self_attn
        of_new.norm.load_state_dict(of_old.norm.state_dict())
        part.post_attention_layernorm.load_state_dict(layer.post_attention_layernorm.state_dict())
        rows = torch.from_numpy((mine[:, None] * head_dim + np.arange(head_dim)).reshape(-1))
        for made, given in ((of_new.query, of_old.query), (of_new.key, of_old.key), (new.v_proj, old.v_proj)):
            made.weight[rows] = given.weight[rows]
        new.o_proj.weight.zero_()
        new.o_proj.weight[:, rows] = old.o_proj.weight[:, rows]
        part.mlp.down_proj.weight.zero_()
        half = index - len(thin) + 2
        if half >= 0:
            size = part.mlp.gate_proj.out_features
            units = slice(half * size, (half + 1) * size)
            part.mlp.gate_proj.weight.copy_(layer.mlp.gate_proj.weight[units])
            part.mlp.up_proj.weight.copy_(layer.mlp.up_proj.weight[units])
            part.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, units])


def grow(base: Joint) -> Joint:
    """The same tower and projector with a decoder of `DEEP`'s layers. New weights are the same every time."""
    torch.manual_seed(3)
    decoder = Decoder(DEEP)
    old, new = base.decoder.llama, decoder.llama
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        new.get_submodule(name).load_state_dict(old.get_submodule(name).state_dict())
    rest = list(new.model.layers)
    for layer, number in zip(old.model.layers, THIN_LAYERS, strict=True):
        take_apart(layer, rest[:number])
        rest = rest[number:]
    model = Joint(base.tower, decoder)
    model.projector.load_state_dict(base.projector.state_dict())
    return model


def train_deep(folder: Path, device, tokenizer, base: Path, stage: Stage) -> Joint:
    """Grow a decoder from a model that `export` wrote, and train projector and decoder as stage 4 does."""
    model, packer = grow(load_exported(base)).to(device), Packer(tokenizer)

    def step_loss(step: int) -> Tensor:
        side = SIDES[step % len(SIDES)]
        scenes = draw_batch(500 + side, step, stage.batch, side)
        labels, patches, packed, places, start = collate(scenes, packer, device)
        visual = model.visual(scenes, labels, patches)
        return answer_loss(model.decoder.llama, model.decoder.naming, packed, visual, places, start)

    def score() -> dict[str, float]:
        return evaluate(model.decoder, model.visual, packer, device, GRID)

    run_stage(stage, folder, model, step_loss, score, evaluate_every=max(1, stage.steps // 5))
    return model
