"""Find and load the vision tower that a checkpoint names."""

import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from vscan.io.weights import has_weights, load_whole, weight_files

from ..check import PREFIX, check_tower, find_local_tower, tower_places
from ..check_video import IMAGE, VIDEO, Part, find_languagebind, tower_settings
from .clip_encoder import CLIPVisionTower
from .video_encoder import TemporalCLIP, VideoTower

TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")  # the rest of a whole CLIP


def find_vision_tower(name: str, model_path: str | Path) -> Path:
    """The tower's folder: inside the checkpoint folder, beside it, at the path itself, or downloaded from the hub.

    Args:
        name: `mm_vision_tower`, such as "openai/clip-vit-large-patch14-336".
        model_path: the checkpoint folder.

    Raises:
        FileNotFoundError: if it is nowhere.
    """
    place = find_local_tower(name, model_path)
    if place is not None:
        return place
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HFValidationError, OSError) as error:
        tried = ", ".join(map(str, tower_places(name, model_path)))
        raise FileNotFoundError(
            f"mm_vision_tower {name!r}: expected a folder with config.json at one of {tried}, or a model of that name "
            f"on the hub; found neither"
        ) from error


def read_tower_weights(model_path: str | Path, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The tower's weights inside a checkpoint, under the tower's own names; empty where it holds none.

    Args:
        prefix: how the checkpoint names them.

    Raises:
        pickle.UnpicklingError: for a file that holds more than plain weights.
    """
    weights = {}
    for file in weight_files(model_path):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                weights |= {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(prefix)}  # noqa: SIM118
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
            weights |= {name: value for name, value in stored.items() if name.startswith(prefix)}
    return {
        name.removeprefix(prefix).removeprefix("vision_model."): value
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
        FileNotFoundError: if the tower, or its weights, are nowhere.
        ValueError: for features other than the patches, another tower than CLIP, and weights that are not whole.
    """
    feature = getattr(config, "mm_vision_select_feature", "patch")
    if feature != "patch":
        raise ValueError(f"mm_vision_select_feature: expected 'patch', got {feature!r}")
    path = find_vision_tower(config.mm_vision_tower, model_path)
    check_tower(path)
    weights = read_tower_weights(model_path)
    where = f"vision tower {str(path)!r}"
    if weights:
        where = f"model path {str(model_path)!r}: vision tower"
        kwargs |= {"state_dict": weights, "config": CLIPVisionModel.config_class.from_pretrained(path)}
    tower = load_whole(CLIPVisionModel, None if weights else path, where, others=TEXT, **kwargs)
    return CLIPVisionTower(tower, config.mm_vision_select_layer)


def build_video_towers(config: dict, model_path: str | Path, **kwargs) -> tuple[CLIPVisionTower, VideoTower]:
    """Load both towers of Video-LLaVA: their weights from the LanguageBind folder where that has some, else from inside
    the checkpoint, else from the hub.

    Args:
        config: the checkpoint's.
        model_path: the checkpoint folder.
        **kwargs: dtype and attn_implementation for `from_pretrained`.

    Raises:
        FileNotFoundError: if weights are nowhere.
        ValueError: for weights that are not whole.
    """
    found = []
    for part, cls in ((IMAGE, CLIPVisionModel), (VIDEO, TemporalCLIP)):
        settings = CLIPVisionConfig(**tower_settings(part, config, model_path))
        weights, where = _languagebind_weights(part, config, model_path)
        if not getattr(settings, "add_time_attn", True):
            weights = {name: value for name, value in weights.items() if ".temporal_" not in name}
        found.append(load_whole(cls, None, where, state_dict=weights, config=settings, **kwargs))
    layer = config["mm_vision_select_layer"]
    return CLIPVisionTower(found[0], layer), VideoTower(found[1], layer)


def _languagebind_weights(part: Part, config: dict, model_path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The weights of one tower under its own names, and whose they are, for messages."""
    place = find_languagebind(part, config, model_path)
    if place is None or not has_weights(place):
        weights = read_tower_weights(model_path, part.prefix)
        if weights:
            return weights, f"model path {str(model_path)!r}: {part.name}"
        place = find_vision_tower(config[part.name], model_path)
    weights = read_tower_weights(place, "")
    return {name: value for name, value in weights.items() if not name.startswith(TEXT)}, f"{part.name} {str(place)!r}"
