"""Load a Qwen2.5-VL checkpoint: the model, its tokenizer, and the image processor that needs no torchvision."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from vscan.compat import Qwen2VLImageProcessorPil
from vscan.io.checkpoint import choose_dtype, loading, read_json
from vscan.io.weights import load_whole

from .check import check_checkpoint
from .qwen2_5_vl_custom import Qwen2_5_VLForConditionalGeneration_X


def load_tokenizer(folder: str | Path):
    """The tokenizer of a checkpoint, with its chat template, wherever that lies.

    Raises:
        ValueError: for a checkpoint without a template, or a tokenizer that is none.
    """
    with loading("a tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    file = Path(folder) / "chat_template.json"  # where processors once had it
    if tokenizer.chat_template is None and file.is_file():
        tokenizer.chat_template = read_json(file).get("chat_template")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"model path {str(folder)!r}: expected a chat template in tokenizer_config.json, chat_template.jinja or "
            f"{file.name}, got none"
        )
    return tokenizer


def load_model(
    model_path: str | Path,
    device_map: str | dict | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> Qwen2_5_VLForConditionalGeneration_X:
    """Load the model of a checkpoint; `load_pretrained_model` says what the arguments are."""
    config = check_checkpoint(model_path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return load_whole(
        Qwen2_5_VLForConditionalGeneration_X,
        model_path,
        f"model path {str(model_path)!r}",
        "quantization_config" in config,
        dtype=choose_dtype(dtype, config, device),
        attn_implementation=attn_implementation,
        device_map=device_map or {"": str(device)},
    )


def load_pretrained_model(
    model_path: str | Path,
    device_map: str | dict | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> tuple:
    """Load a checkpoint with its tokenizer and image processor.

    Args:
        model_path: the checkpoint folder.
        device_map: how accelerate spreads the model; None puts it on `device`.
        device: where it runs; None is "cuda" where there is one, else "cpu".
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.
        dtype: "auto" (the checkpoint's own; on a CPU, float32 instead of float16), or a dtype or its name.

    Returns:
        (tokenizer, model, image_processor).

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that is incomplete or of another kind.
    """
    check_checkpoint(model_path)
    tokenizer = load_tokenizer(model_path)
    with loading("an image processor", model_path):
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(model_path)
    return tokenizer, load_model(model_path, device_map, device, attn_implementation, dtype), image_processor
