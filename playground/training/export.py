"""The checkpoint in LLaVA's original format, with the tower's weights inside, as v1.6 has them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava.model.language_model.llava_llama import LlavaConfig
from vscan.compat import CLIPImageProcessorPil

from ..scenes.picture import PATCH
from ..scenes.world import GRID
from .decoder import Decoder
from .joint import Joint
from .packing import NAMED_AFTER
from .sizes import FEATURE_LAYER, WIDTH
from .tower import Tower

IN_TOWER, IN_PROJECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
STATE = "state"  # folder in a model's own, of a training that is not done
LOCAL_LAYER = 1  # LLaVA-1.5 scans locally at block 5 of 24


def export(model: Joint, tokenizer_folder: Path, folder: Path) -> None:
    """Write a checkpoint folder in half precision; an older one is replaced once the new one is whole.

    LLaVA-1.5 prunes where its decoder has looked up what it needs: before layer 16 of 32. Ours are trained to have done
    so after the layers that `NAMED_AFTER` says.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = dict(model.decoder.llama.state_dict())
    weights |= {f"{IN_PROJECTOR}{name}": value for name, value in model.projector.state_dict().items()}
    tower = model.tower.tower
    weights |= {f"{IN_TOWER}{name}": value for name, value in tower.state_dict().items() if "position_ids" not in name}
    weights = {name: value.to("cpu", torch.float16).contiguous() for name, value in weights.items()}
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    text = model.decoder.llama.config
    config = LlavaConfig(
        **{**text.to_diff_dict(), "model_type": "llava_llama"},
        architectures=["LlavaLlamaForCausalLM"],
        dtype="float16",
        mm_hidden_size=WIDTH,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=FEATURE_LAYER,
        mm_vision_select_feature="patch",
        mm_vision_tower="clip_tower",
        image_aspect_ratio="pad",
        reduction={"vscan": {"local_layer": LOCAL_LAYER, "prune_layer": NAMED_AFTER[text.num_hidden_layers]}},
    )
    config.save_pretrained(part)
    ends = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (part / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_folder / name, part / name)
    side = GRID * PATCH
    tower.config.save_pretrained(part / "clip_tower")
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, resample=3
    ).save_pretrained(part / "clip_tower")
    if (folder / STATE).exists():  # of a training that may go on
        (folder / STATE).rename(part / STATE)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def load_exported(folder: Path) -> Joint:
    """A model as `export` wrote it; what only training needs (oracle, naming head) is new."""
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}

    def part(prefix: str) -> dict:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    model = Joint(Tower(), Decoder())
    model.tower.tower.load_state_dict(part(IN_TOWER))
    model.projector.load_state_dict(part(IN_PROJECTOR))
    of_llama = {name: value for name, value in weights.items() if not name.startswith((IN_TOWER, IN_PROJECTOR))}
    model.decoder.llama.load_state_dict(of_llama)
    return model
