"""Checkpoint folders: judged by their files alone, before torch is imported and any weight is read; then loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ReductionConfig

if TYPE_CHECKING:
    import torch

WEIGHTS = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_json(file: Path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: for anything else.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {content!r}")
    return content


def check_config(folder: str | Path) -> dict:
    """A checkpoint's config.json.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no JSON object.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"model path {str(folder)!r}: expected a checkpoint folder with config.json")
    return read_json(file)


def check_weights(folder: str | Path) -> None:
    """Raise FileNotFoundError if a checkpoint's weights, or some of their shards, are missing."""
    folder = Path(folder)
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"model path {str(folder)!r}: expected weights (one of {', '.join(WEIGHTS)}), got none")
    if found.suffix == ".json":
        shards = sorted(set(read_json(found).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing or not shards:
            raise FileNotFoundError(
                f"model path {str(folder)!r}: expected the {len(shards)} shards that {found.name} names, "
                f"{len(missing)} are missing: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
            )


def check_layers(reduction: ReductionConfig, config: dict) -> None:
    """Raise ValueError for a layer that the decoder of a checkpoint with this config does not have."""
    num_layers = (config.get("text_config") or config).get("num_hidden_layers", 32)
    for layer, _ in reduction.layers:
        if layer >= num_layers:
            raise ValueError(f"layers: expected decoder layers 0 to {num_layers - 1}, got {layer}")


def choose_dtype(dtype: str | torch.dtype, config: dict, device: torch.device) -> torch.dtype:
    """The dtype to compute in.

    Args:
        dtype: "auto", or a dtype or its name. "auto" is the checkpoint's own; on a CPU, float32 instead of float16.
        config: the checkpoint's config.
        device: where the model will run.

    Raises:
        ValueError: for a name that is no floating-point dtype.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    text_config = config.get("text_config", {})
    stored = config.get("dtype") or config.get("torch_dtype") or text_config.get("torch_dtype") or "float16"
    chosen = getattr(torch, stored if dtype == "auto" else dtype, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype: expected auto, float32, bfloat16 or float16, got {dtype!r}")
    return torch.float32 if dtype == "auto" and device.type == "cpu" and chosen == torch.float16 else chosen


def load_checked(load: Callable[..., tuple], model_path: str, device: str | None, **options) -> tuple:
    """Call a family's `load_pretrained_model`; whatever keeps a checkpoint from loading becomes one kind of error.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint, a device or a kernel that is not there or not whole.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        return load(model_path, device=device, **options)
    except (AssertionError, ImportError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"model path {model_path!r}: expected a checkpoint that loads on device {device or 'auto'}, "
            f"got {type(error).__name__}: {error}"
        ) from error


def model_name(path: str | Path) -> str:
    """The last component of a checkpoint's path, with its parent's name in front if it is a "checkpoint-..." folder."""
    components = str(path).strip("/").split("/")
    return "_".join(components[-2:]) if components[-1].startswith("checkpoint-") else components[-1]
