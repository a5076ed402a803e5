"""Video-LLaVA in the original format, judged by its files: a CLIP tower for images and one with attention over time.

The checkpoint holds both. LanguageBind's folders, where they are at hand, say how the towers are built, and their
weights come before those inside; without them the towers are those of the published checkpoint, ViT-L/14 at 224 pixels.
"""

from pathlib import Path
from typing import NamedTuple

from vscan.io.checkpoint import check_config
from vscan.io.weights import check_weights, has_weights

SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_L = {**SIZES, "patch_size": 14, "image_size": 224, "projection_dim": 768, "layer_norm_eps": 1e-5}
SETTINGS = {**VIT_L, "hidden_act": "gelu", "num_channels": 3, "attention_dropout": 0.0}
OVER_TIME = {"num_frames": 8, "add_time_attn": True}


class Part(NamedTuple):
    """A tower of Video-LLaVA.

    Args:
        name: the key of the checkpoint's config that names it.
        prefix: how the checkpoint names its weights.
        model_type: of its LanguageBind folder.
        settings: those of its config that count, as published.
    """

    name: str
    prefix: str
    model_type: str
    settings: dict


IMAGE = Part("mm_image_tower", "model.image_tower.image_tower.", "LanguageBindImage", SETTINGS)
VIDEO = Part("mm_video_tower", "model.video_tower.video_tower.", "LanguageBindVideo", {**SETTINGS, **OVER_TIME})


def is_video(config: dict) -> bool:
    """Whether a config is that of Video-LLaVA in the original format, whose `model_type` is LLaVA's."""
    return VIDEO.name in config


def find_languagebind(part: Part, config: dict, folder: str | Path) -> Path | None:
    """The LanguageBind folder of a tower: inside the checkpoint's folder, beside it, in `towers` beside it, or at the
    path itself; None where it is not at hand."""
    folder, name = Path(folder), config[part.name]
    short = Path(name).name
    places = [folder / name, folder.parent / name, folder.parent / short, folder.parent / "towers" / short, Path(name)]
    return next((place for place in places if (place / "config.json").is_file()), None)


def tower_settings(part: Part, config: dict, folder: str | Path) -> dict:
    """How a tower is built.

    Raises:
        ValueError: for a folder of another kind, a value of a wrong kind, or another width than the checkpoint's.
    """
    place, settings = find_languagebind(part, config, folder), dict(part.settings)
    if place is not None:
        found = check_config(place)
        if found.get("model_type") != part.model_type or not isinstance(found.get("vision_config"), dict):
            raise ValueError(
                f"{part.name} {str(place)!r}: expected a config with vision_config and the model type "
                f"{part.model_type}, got model_type {found.get('model_type')!r}"
            )
        settings |= {name: value for name, value in found["vision_config"].items() if name in settings}
    if config["mm_hidden_size"] != settings["hidden_size"]:
        source = place or f"{config[part.name]} (whose folder is not at hand)"
        raise ValueError(
            f"{Path(folder) / 'config.json'}: mm_hidden_size: expected {settings['hidden_size']}, as {source} has it, "
            f"got {config['mm_hidden_size']}"
        )
    return settings


def check_towers(config: dict, folder: Path, names: set[str]) -> dict:
    """Check what only configs of this kind have, and the towers' folders where they are at hand.

    Args:
        names: of the checkpoint's weights; none where only torch can read them.

    Returns:
        The settings of the image tower.

    Raises:
        FileNotFoundError, ValueError: for what keeps a tower from being built.
    """
    file, found = folder / "config.json", []
    for key in ("mm_hidden_size", "mm_vision_select_layer"):
        if key not in config:
            raise ValueError(f"{file}: {key}: expected an int, got none")
    for part in (IMAGE, VIDEO):
        if not isinstance(config.get(part.name), str) or not config[part.name]:
            raise ValueError(f"{file}: {part.name}: expected the name of a tower, got {config.get(part.name)!r}")
        found.append(tower_settings(part, config, folder))
        place, inside = find_languagebind(part, config, folder), any(name.startswith(part.prefix) for name in names)
        if place is not None and has_weights(place):
            check_weights(place)
        elif names and not inside:
            raise FileNotFoundError(
                f"model path {str(folder)!r}: expected weights of {part.name}, inside the checkpoint ({part.prefix}*) "
                f"or in a folder {config[part.name]!r}, got none"
            )
    image, video = found
    for key in SETTINGS:
        if key in ("hidden_size", "patch_size", "image_size") and image[key] != video[key]:
            raise ValueError(f"{file}: {key}: expected the same in both towers, got {image[key]} and {video[key]}")
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise ValueError(
            f"{file}: mm_vision_select_feature: expected 'patch', got {config['mm_vision_select_feature']!r}"
        )
    return image
