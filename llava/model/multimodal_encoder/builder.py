"""Find and load the vision tower that a checkpoint names."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionModel

from vscan.compat import build

from .clip_encoder import CLIPVisionTower

# How checkpoints in the original format name the weights of a tower that they hold.
PREFIX = "model.vision_tower.vision_tower."


def find_vision_tower(name: str, model_path: str | Path) -> Path:
    """The tower's folder: inside the checkpoint folder, beside it, at the path itself, or downloaded from the hub.

    Args:
        name: `mm_vision_tower`, such as "openai/clip-vit-large-patch14-336".
        model_path: the checkpoint folder.

    Raises:
        FileNotFoundError: if it is nowhere.
    """
    folder = Path(model_path)
    places = [folder / name, folder.parent / name, folder.parent / Path(name).name, Path(name)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HFValidationError, OSError) as error:
        tried = ", ".join(map(str, places))
        raise FileNotFoundError(
            f"mm_vision_tower {name!r}: expected a folder with config.json at one of {tried}, or a model of that name "
            f"on the hub; found neither"
        ) from error


def read_tower_weights(model_path: str | Path) -> dict[str, Tensor]:
    """The tower's weights inside a checkpoint, under the tower's own names; empty where it holds none.

    Raises:
        pickle.UnpicklingError: for a file that holds more than plain weights.
    """
    weights = {}
    for file in sorted([*Path(model_path).glob("*.safetensors"), *Path(model_path).glob("*.bin")]):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                weights |= {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(PREFIX)}  # noqa: SIM118
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            weights |= {name: value for name, value in stored.items() if name.startswith(PREFIX)}
    return {
        name.removeprefix(PREFIX).removeprefix("vision_model."): value
        for name, value in weights.items()
        if not name.endswith("position_ids")
    }


def build_vision_tower(config, model_path: str | Path, **kwargs) -> CLIPVisionTower:
    """Load the tower: its weights from inside the checkpoint where it was trained too (v1.6), else from its own folder.

    Args:
        config: with `mm_vision_tower`, `mm_vision_select_layer` and `mm_vision_select_feature`.
        model_path: the checkpoint folder.
        **kwargs: dtype and attn_implementation for `from_pretrained`.

    Raises:
        FileNotFoundError: if the tower is nowhere.
        ValueError: for features other than the patches.
    """
    feature = getattr(config, "mm_vision_select_feature", "patch")
    if feature != "patch":
        raise ValueError(f"mm_vision_select_feature: expected 'patch', got {feature!r}")
    path = find_vision_tower(config.mm_vision_tower, model_path)
    weights = read_tower_weights(model_path)
    if weights:
        tower_config = CLIPVisionModel.config_class.from_pretrained(path)
        tower = build(CLIPVisionModel, tower_config, **kwargs)
        tower.load_state_dict(weights)
    else:
        tower = CLIPVisionModel.from_pretrained(path, **kwargs)
    return CLIPVisionTower(tower.eval(), config.mm_vision_select_layer)
