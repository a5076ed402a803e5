"""Load a LLaVA checkpoint, in the original format or in Hugging Face's; which of the two its config says."""

from pathlib import Path

import torch
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    VideoLlavaForConditionalGeneration,
)

from llava.mm_utils import load_image_processor
from llava.tokenizer import load_tokenizer
from vscan.compat import CLIPImageProcessorPil
from vscan.io.checkpoint import choose_dtype, loading, warn_once
from vscan.io.weights import load_whole

from .check import check_checkpoint, check_model, is_original
from .check_video import is_video
from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from .language_model.video_llava_llama import VideoLlavaLlamaForCausalLM
from .multimodal_encoder.builder import build_video_towers, build_vision_tower, find_vision_tower

# Stock models by the model_type of their config.
HUGGING_FACE = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "video_llava": VideoLlavaForConditionalGeneration,
}


def load_model(
    model_path: str | Path,
    device_map: str | dict | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """Load the model of a checkpoint; `load_pretrained_model` says what the arguments are."""
    config = check_model(model_path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = {"dtype": choose_dtype(dtype, config, device), "attn_implementation": attn_implementation}
    placed = {**options, "device_map": device_map or {"": str(device)}}
    where, quantized = f"model path {str(model_path)!r}", "quantization_config" in config
    if not is_original(config):
        warn_of_activation(config, where)
        return load_whole(HUGGING_FACE[config["model_type"]], model_path, where, quantized, **placed)
    # AutoConfig would read some of these as transformers' own LLaVA, with the sizes of the 7B model.
    placed["config"] = LlavaConfig.from_dict(config)
    if is_video(config):
        model = load_whole(VideoLlavaLlamaForCausalLM, model_path, where, quantized, **placed)
        towers = build_video_towers(config, model_path, **options)
    else:
        model = load_whole(LlavaLlamaForCausalLM, model_path, where, quantized, **placed)
        towers = (build_vision_tower(model.config, model_path, **options),)
    for name, tower in zip(("vision_tower", "video_tower"), towers, strict=False):
        setattr(model.model, name, tower.to(model.get_input_embeddings().weight.device))
    return model.eval()


def warn_of_activation(config: dict, where: str) -> None:
    """Say that a stock Video-LLaVA, as it is published, does not say what its towers were trained with."""
    if config["model_type"] == "video_llava" and not config["vision_config"].get("hidden_act"):
        warn_once(
            f"{where}: vision_config says no hidden_act: transformers takes quick_gelu, the towers were trained with "
            "gelu; say so in config.json for the original's answers"
        )


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    device_map: str | dict | None = None,
    device: str | None = None,
    use_flash_attn: bool = False,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = "auto",
):
    """Load a checkpoint with its tokenizer and image processor.

    Args:
        model_path: the checkpoint folder.
        model_base: not supported (adapters on a base model): must be None.
        model_name: a name for messages; nothing depends on it.
        device_map: how accelerate spreads the model; None puts it on `device`.
        device: where it runs; None is "cuda" where there is one, else "cpu".
        use_flash_attn: the same as attn_implementation="flash_attention_2".
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.
        dtype: "auto" (`choose_dtype`), or a dtype or its name.

    Returns:
        (tokenizer, model, image_processor, context_len). The model is a LlavaLlamaForCausalLM, a
        VideoLlavaLlamaForCausalLM, or transformers' own (Video)Llava(Next)ForConditionalGeneration for a Hugging Face
        checkpoint.

    Raises:
        FileNotFoundError, ValueError: for a checkpoint that is incomplete or of another kind.
    """
    if model_base is not None:
        raise ValueError(f"model_base: expected None (merge the adapter into its base first), got {model_base!r}")
    config = check_checkpoint(model_path)
    with loading("a tokenizer", model_path):
        tokenizer = load_tokenizer(model_path)
    name = config.get("mm_vision_tower")
    folder = model_path if name is None else find_vision_tower(name, model_path)
    with loading("an image processor", folder):
        # LanguageBind's folders have none; its sizes, mean and deviation are CLIP's, which are the defaults.
        image_processor = CLIPImageProcessorPil() if is_video(config) else load_image_processor(folder)
    attn_implementation = "flash_attention_2" if use_flash_attn else attn_implementation
    model = load_model(model_path, device_map, device, attn_implementation, dtype)
    text_config = config.get("text_config", config)
    context_len = text_config.get("max_sequence_length") or text_config.get("max_position_embeddings") or 2048
    return tokenizer, model, image_processor, context_len
