"""Checkpoint folders: judged by their files alone, before torch is imported and any weight is read; then loaded."""

from __future__ import annotations

import codecs
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ReductionConfig, check_arriving

if TYPE_CHECKING:
    import torch

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Where they are there, they must be whole: transformers passes over a generation config that is not, for example.
SETTINGS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
POINTER = b"version https://git-lfs.github.com/"  # how a file begins that git alone has fetched
DTYPES = ("float16", "bfloat16", "float32", "float64")
SIZES = (  # in a config or its parts: ints of at least 1
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"),
    *("intermediate_size", "vocab_size", "max_position_embeddings", "max_sequence_length", "mm_hidden_size"),
    *("image_size", "patch_size", "depth", "num_heads", "out_hidden_size", "spatial_merge_size"),
    *("temporal_patch_size", "window_size"),
)
NULLABLE = ("num_key_value_heads", "head_dim", "max_sequence_length")
DIVISORS = (  # (a size, what must divide it)
    ("hidden_size", "num_attention_heads"),
    ("hidden_size", "num_heads"),
    ("num_attention_heads", "num_key_value_heads"),
)


def check_pointer(file: Path) -> None:
    """Raise ValueError for a Git LFS pointer, or nothing, in place of a file's content."""
    with file.open("rb") as opened:
        beginning = opened.read(len(POINTER))
    if beginning == POINTER:
        raise ValueError(f"{file}: expected the file itself, got a Git LFS pointer to it: fetch it by `git lfs pull`")
    if not beginning:
        raise ValueError(f"{file}: expected the file's content, got an empty file")


def _not_utf8(data: bytes) -> int | None:
    """Where bytes stop being the UTF-8 that transformers reads, which has no byte order mark; None if they do not."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    zero = data.find(b"\0")  # of UTF-16
    return 0 if data.startswith(codecs.BOM_UTF8) else None if zero < 0 else zero


def read_json(file: Path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: for anything else.
    """
    check_pointer(file)
    data = file.read_bytes()
    wrong = _not_utf8(data)
    if wrong is not None:
        line = data.count(b"\n", 0, wrong) + 1
        raise ValueError(
            f"{file}, line {line}: expected UTF-8 without a byte order mark, got the byte {data[wrong]:#04x}"
        )
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {str(content)[:60]}")
    return content


def check_config(folder: str | Path) -> dict:
    """A checkpoint's config.json.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no JSON object, if a value in it is of a wrong kind, or if the folder holds an adapter.
    """
    folder = Path(folder)
    adapter = next((folder / name for name in ADAPTERS if (folder / name).is_file()), None)
    if adapter is not None:  # transformers would load the base, from wherever the adapter says, or leave it out
        base = read_json(adapter).get("base_model_name_or_path") if adapter.suffix == ".json" else None
        raise ValueError(
            f"model path {str(folder)!r}: expected a whole checkpoint, got an adapter ({adapter.name}) of the base "
            f"model {base or 'that it was trained on'}: merge it into its base, and save that in another folder"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"model path {str(folder)!r}: expected a checkpoint folder with config.json")
    config = read_json(file)
    _check_part(config, f"{file}: ")
    for name in ("text_config", "vision_config"):
        part = config.get(name)
        if part is not None and not isinstance(part, dict):
            raise ValueError(f"{file}: {name}: expected an object, got {part!r}")
        _check_part(part or {}, f"{file}: {name}.")
    _check_defaults(config, file)
    return config


def _check_part(part: dict, where: str) -> None:
    """Check the sizes and the dtype in a config or in one of its parts; what is left out has transformers' default."""
    for name in SIZES:
        value = part.get(name, 1)
        if (type(value) is not int or value < 1) and not (value is None and name in NULLABLE):
            raise ValueError(f"{where}{name}: expected an int of at least 1, got {value!r}")
    for name, divisor in DIVISORS:
        whole, by = part.get(name), part.get(divisor)
        if name == "hidden_size" and part.get("head_dim"):
            continue
        if whole and by and whole % by:
            raise ValueError(f"{where}{divisor}: expected a divisor of {name} {whole}, got {by}")
    for name in ("dtype", "torch_dtype"):
        if part.get(name) not in (None, *DTYPES):
            raise ValueError(f"{where}{name}: expected one of {', '.join(DTYPES)}, got {part[name]!r}")


def _check_defaults(config: dict, file: Path) -> None:
    """Check `reduction`: a checkpoint's own hyper-parameters, by method."""
    stored = config.get("reduction")
    if stored is not None and not isinstance(stored, dict):
        raise ValueError(f"{file}: reduction: expected an object, got {stored!r}")
    for name, value in (stored or {}).items():
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{file}: reduction.{name}: expected an object of hyper-parameters, got {value!r}")


def check_settings(folder: str | Path) -> None:
    """Raise ValueError for a file of settings beside the weights that is no JSON object."""
    for name in SETTINGS:
        if (Path(folder) / name).is_file():
            read_json(Path(folder) / name)


def check_layers(reduction: ReductionConfig, config: dict, num_tokens: int | None = None) -> None:
    """Check a reduction against the decoder of a checkpoint with this config.

    Args:
        num_tokens: visual tokens of a view; None where that is not known, or differs.

    Raises:
        ValueError: for a layer that the decoder does not have, or a count above what arrives there.
    """
    text_config = config.get("text_config") or config
    num_layers = text_config.get("num_hidden_layers", 32)
    for layer, _ in reduction.layers:
        if layer >= num_layers:
            raise ValueError(f"layers: expected decoder layers 0 to {num_layers - 1}, got {layer}")
    check_arriving(reduction, num_tokens, text_config.get("max_position_embeddings") or sys.maxsize)


def stored_dtype(config: dict) -> str:
    """The dtype that a config says its weights have, for the whole model or for its text model; else float16."""
    parts = (config, config.get("text_config") or {})
    found = (part.get(name) for part in parts for name in ("dtype", "torch_dtype"))
    return next(filter(None, found), "float16")


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
    chosen = getattr(torch, stored_dtype(config) if dtype == "auto" else dtype, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype: expected auto, float32, bfloat16 or float16, got {dtype!r}")
    return torch.float32 if dtype == "auto" and device.type == "cpu" and chosen == torch.float16 else chosen


@cache
def warn_once(message: str) -> None:
    """Say something in one line, the first time in this process."""
    logging.getLogger("vscan").warning(message)


@contextmanager
def loading(what: str, folder: str | Path) -> Iterator[None]:
    """Whatever keeps a part of a checkpoint from loading becomes a ValueError that names the folder."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # tokenizers, for example, reports a broken file by errors of every kind
        raise ValueError(
            f"model path {str(folder)!r}: expected {what} that loads, got {type(error).__name__}: {error}"
        ) from error


def load_checked(load: Callable[..., tuple], model_path: str, device: str | None, **options) -> tuple:
    """Call a family's `load_pretrained_model`; whatever keeps a checkpoint from loading becomes one kind of error.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint, a device or a kernel that is not there or not whole.
    """
    try:
        return load(model_path, device=device, **options)
    except (OSError, ValueError):
        raise
    except Exception as error:  # transformers, tokenizers and torch report what is wrong by errors of every kind
        raise ValueError(
            f"model path {model_path!r}: expected a checkpoint that loads on device {device or 'auto'}, "
            f"got {type(error).__name__}: {error}"
        ) from error


def model_name(path: str | Path) -> str:
    """The last component of a checkpoint's path, with its parent's name in front if it is a "checkpoint-..." folder."""
    components = str(path).strip("/").split("/")
    return "_".join(components[-2:]) if components[-1].startswith("checkpoint-") else components[-1]
