"""Checkpoint folders, judged by their files alone: before torch is imported and any weight is read."""

import json
from pathlib import Path

from vscan.config import ReductionConfig

HUGGING_FACE = ("llava", "llava_next")
WEIGHTS = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def check_checkpoint(folder: str | Path) -> dict:
    """Check that a folder holds a whole checkpoint of a kind that can be loaded.

    Returns:
        Its config.

    Raises:
        FileNotFoundError: if the config, the weights or some of their shards are missing.
        ValueError: for a file that is no JSON, or another architecture.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model path {str(folder)!r}: expected a checkpoint folder with config.json")
    config = _read(folder / "config.json")
    hugging_face = config.get("model_type") in HUGGING_FACE and "vision_config" in config
    if "mm_vision_tower" not in config and not hugging_face:
        raise ValueError(
            f"model path {str(folder)!r}: expected a config with mm_vision_tower (original LLaVA) or with "
            f"vision_config and one of the model types {', '.join(HUGGING_FACE)} (Hugging Face), "
            f"got model_type {config.get('model_type')!r}"
        )
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"model path {str(folder)!r}: expected weights (one of {', '.join(WEIGHTS)}), got none")
    if found.suffix == ".json":
        shards = sorted(set(_read(found).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing or not shards:
            raise FileNotFoundError(
                f"model path {str(folder)!r}: expected the {len(shards)} shards that {found.name} names, "
                f"{len(missing)} are missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            )
    return config


def check_reduction(reduction: ReductionConfig | None, config: dict, folder: str | Path) -> None:
    """Check what the config says about a reduction: decoder layers and, where it is known, the tokens of an image.

    Raises:
        ValueError: for a layer that the decoder does not have, or a budget above the number of tokens.
    """
    if reduction is None:
        return
    num_layers = (config.get("text_config") or config).get("num_hidden_layers", 32)
    for layer, _ in reduction.layers:
        if layer >= num_layers:
            raise ValueError(f"layers: expected decoder layers 0 to {num_layers - 1}, got {layer}")
    check_budget(reduction, config, _tokens_per_image(config, Path(folder)))


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


def _tokens_per_image(config: dict, folder: Path) -> int | None:
    """Patches of an image; None where the vision tower's config is not at hand."""
    name = config.get("mm_vision_tower")
    if name is not None:
        places = [folder / name, folder.parent / name, folder.parent / Path(name).name, Path(name)]
        files = [place / "config.json" for place in places if (place / "config.json").is_file()]
        config = _read(files[0]) if files else {}
    vision = config.get("vision_config", config)
    if not {"image_size", "patch_size"} <= set(vision):
        return None
    return (vision["image_size"] // vision["patch_size"]) ** 2


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {content!r}")
    return content
