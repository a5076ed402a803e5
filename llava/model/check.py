"""Checkpoint folders, judged by their files alone: before torch is imported and any weight is read."""

from pathlib import Path

from vscan.config import ReductionConfig
from vscan.eval.checkpoint import check_config, check_layers, check_weights, read_json

HUGGING_FACE = ("llava", "llava_next")


def check_checkpoint(folder: str | Path) -> dict:
    """Check that a folder holds a whole checkpoint of a kind that can be loaded.

    Returns:
        Its config.

    Raises:
        FileNotFoundError: if the config, the weights or some of their shards are missing.
        ValueError: for a file that is no JSON, or another architecture.
    """
    config = check_config(folder)
    hugging_face = config.get("model_type") in HUGGING_FACE and "vision_config" in config
    if "mm_vision_tower" not in config and not hugging_face:
        raise ValueError(
            f"model path {str(folder)!r}: expected a config with mm_vision_tower (original LLaVA) or with "
            f"vision_config and one of the model types {', '.join(HUGGING_FACE)} (Hugging Face), "
            f"got model_type {config.get('model_type')!r}"
        )
    check_weights(folder)
    return config


def check_reduction(reduction: ReductionConfig | None, config: dict, folder: str | Path) -> None:
    """Check what the config says about a reduction: decoder layers and, where it is known, the tokens of an image.

    Raises:
        ValueError: for a layer that the decoder does not have, or a budget above the number of tokens.
    """
    if reduction is None:
        return
    check_layers(reduction, config)
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
        config = read_json(files[0]) if files else {}
    vision = config.get("vision_config", config)
    if not {"image_size", "patch_size"} <= set(vision):
        return None
    return (vision["image_size"] // vision["patch_size"]) ** 2
