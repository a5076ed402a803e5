"""Checkpoint folders, judged by their files alone: before torch is imported and any weight is read."""

from pathlib import Path

from vscan.config import ReductionConfig
from vscan.io.checkpoint import check_config, check_layers, check_pointer, check_settings, read_json
from vscan.io.weights import check_weights

from .check_video import IMAGE, check_towers, is_video, tower_settings

ORIGINAL = ("llava", "llava_llama")
HUGGING_FACE = ("llava", "llava_next", "video_llava")
TOWERS = ("clip", "clip_vision_model")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
PREPROCESSOR = "preprocessor_config.json"
# How checkpoints in the original format name the weights of a tower that they hold.
PREFIX = "model.vision_tower.vision_tower."


def check_checkpoint(folder: str | Path) -> dict:
    """Check that a folder holds a whole checkpoint of a kind that can be loaded.

    Returns:
        Its config.

    Raises:
        FileNotFoundError: if the config, the tokenizer, the image processor's config, the weights or some of their
            shards are missing.
        ValueError: for a file that is no JSON, a value of a wrong kind, weights that are none, an adapter, or another
            architecture.
    """
    folder = Path(folder)
    config = check_model(folder)
    tokenizer = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if tokenizer is None:
        raise FileNotFoundError(
            f"model path {str(folder)!r}: expected a tokenizer ({' or '.join(TOKENIZERS)}), got none"
        )
    check_pointer(tokenizer)
    check_settings(folder)
    name = config.get("mm_vision_tower")
    processor = folder if name is None else find_local_tower(name, folder)
    if processor is not None and not is_video(config):  # whose pictures are prepared in one way
        if not (processor / PREPROCESSOR).is_file():
            raise FileNotFoundError(f"model path {str(processor)!r}: expected {PREPROCESSOR}, found none")
        check_settings(processor)
    return config


def check_model(folder: str | Path) -> dict:
    """`check_checkpoint` of config and weights alone, the vision tower's included; returns the config."""
    folder = Path(folder)
    config = check_config(folder)
    original = is_original(config)
    if config.get("model_type") not in (ORIGINAL if original else HUGGING_FACE) or not (
        original or isinstance(config.get("vision_config"), dict)
    ):
        raise ValueError(
            f"model path {str(folder)!r}: expected a config with mm_vision_tower and one of the model types "
            f"{', '.join(ORIGINAL)} (original LLaVA), or with vision_config and one of {', '.join(HUGGING_FACE)} "
            f"(Hugging Face), got model_type {config.get('model_type')!r}"
        )
    names = check_weights(folder, "quantization_config" in config)
    if is_video(config):
        _check_layer(config, "mm_vision_select_layer", check_towers(config, folder, names), folder)
    elif original:
        _check_original(config, folder, any(name.startswith(PREFIX) for name in names))
    else:
        _check_layer(config, "vision_feature_layer", config["vision_config"], folder)
    return config


def is_original(config: dict) -> bool:
    """Whether a config is one in the original format."""
    return "mm_vision_tower" in config or is_video(config)


def _check_original(config: dict, folder: Path, has_tower: bool) -> None:
    """Check what only configs in the original format have, and the tower where its folder is at hand."""
    file, name = folder / "config.json", config["mm_vision_tower"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"{file}: mm_vision_tower: expected the name of a vision tower, got {name!r}")
    for key in ("mm_hidden_size", "mm_vision_select_layer"):
        if key not in config:
            raise ValueError(f"{file}: {key}: expected an int, got none")
    if config.get("image_aspect_ratio") == "anyres":
        pinpoints = config.get("image_grid_pinpoints")
        if not isinstance(pinpoints, list) or not pinpoints or not all(map(_is_size, pinpoints)):
            raise ValueError(f"{file}: image_grid_pinpoints: expected pairs of width and height, got {pinpoints!r}")
    tower = find_local_tower(name, folder)
    if tower is None:  # it is looked for on the hub when it is loaded
        _check_layer(config, "mm_vision_select_layer", {}, folder)
        return
    vision = check_tower(tower)
    _check_layer(config, "mm_vision_select_layer", vision, folder)
    width = vision.get("hidden_size", config["mm_hidden_size"])
    if config["mm_hidden_size"] != width:
        raise ValueError(f"{file}: mm_hidden_size: expected {width}, as {tower} has it, got {config['mm_hidden_size']}")
    if not has_tower:
        check_weights(tower)


def check_tower(folder: Path) -> dict:
    """Check the config of a vision tower's folder; returns the part of it that describes the tower.

    Raises:
        ValueError: for another tower than CLIP, or a value of a wrong kind.
    """
    config = check_config(folder)
    if config.get("model_type") not in TOWERS:
        raise ValueError(
            f"vision tower {str(folder)!r}: expected one of the model types {', '.join(TOWERS)}, "
            f"got {config.get('model_type')!r}"
        )
    return config.get("vision_config") or config


def _check_layer(config: dict, name: str, vision: dict, folder: Path) -> None:
    """Check the tower's layer that is read, or layers."""
    layers = config.get(name, -2)
    most = vision.get("num_hidden_layers")
    for layer in layers if isinstance(layers, list) and layers else [layers]:
        if type(layer) is not int or (most is not None and not -most - 1 <= layer <= most):
            wanted = "an int" if most is None else f"a layer of {-most - 1} to {most} of the vision tower"
            raise ValueError(f"{folder / 'config.json'}: {name}: expected {wanted}, got {layers!r}")


def _is_size(pair) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)


def tower_places(name: str, folder: str | Path) -> list[Path]:
    """Where a checkpoint's vision tower may lie: inside its folder, beside it, or at the path itself."""
    folder = Path(folder)
    return [folder / name, folder.parent / name, folder.parent / Path(name).name, Path(name)]


def find_local_tower(name: str, folder: str | Path) -> Path | None:
    """The folder of a checkpoint's vision tower; None where it is not at hand."""
    return next((place for place in tower_places(name, folder) if (place / "config.json").is_file()), None)


def check_reduction(reduction: ReductionConfig | None, config: dict, folder: str | Path) -> None:
    """Check what the config says about a reduction: decoder layers and, where it is known, the tokens of an image.

    Raises:
        ValueError: for a layer that the decoder does not have, or a budget above the number of tokens.
    """
    if reduction is None:
        return
    num_tokens = tokens_per_image(config, Path(folder))
    check_budget(reduction, config, num_tokens)
    check_layers(reduction, config, num_tokens)


def check_budget(reduction: ReductionConfig, config: dict, num_tokens: int | None) -> None:
    """Raise ValueError for more tokens than an image has, where that is one number for all images (LLaVA-1.5)."""
    any_resolution = config.get("model_type") == "llava_next" or "anyres" in str(config.get("image_aspect_ratio"))
    if any_resolution or num_tokens is None or not isinstance(reduction.visual_tokens, int):
        return
    if reduction.visual_tokens > num_tokens:
        raise ValueError(
            f"visual_token_num: expected at most {num_tokens}, the tokens of an image of this model, "
            f"got {reduction.visual_tokens}"
        )


def tokens_per_image(config: dict, folder: Path) -> int | None:
    """Patches of an image; None where the vision tower's config is not at hand."""
    if is_video(config):
        config = tower_settings(IMAGE, config, folder)
    name = config.get("mm_vision_tower")
    if name is not None:
        tower = find_local_tower(name, folder)
        config = read_json(tower / "config.json") if tower else {}
    vision = config.get("vision_config") or config
    if not {"image_size", "patch_size"} <= set(vision):
        return None
    return (vision["image_size"] // vision["patch_size"]) ** 2
