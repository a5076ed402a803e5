"""Find and load the vision tower that a checkpoint names."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import CLIPVisionModel

from .clip_encoder import CLIPVisionTower


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


def build_vision_tower(config, model_path: str | Path, **kwargs) -> CLIPVisionTower:
    """Load the tower.

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
    tower = CLIPVisionModel.from_pretrained(path, **kwargs).eval()
    return CLIPVisionTower(tower, config.mm_vision_select_layer)
