"""What lies beside the weights of a converted checkpoint: the configs of model, generation, tokenizer and processor."""

import json
from pathlib import Path

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    VideoLlavaConfig,
)

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_PAD_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.conversation import get_conversation
from llava.mm_utils import load_image_processor
from llava.tokenizer import LlamaSentencePieceTokenizer
from vscan.compat import CLIPImageProcessorPil
from vscan.io.checkpoint import read_json, stored_dtype

from .check_video import OVER_TIME
from .language_model.llava_llama import LlavaConfig as OriginalConfig

ROWS = 64  # the vocabulary grows to a multiple of this, as in published conversions


def build_config(stored: dict, vision: CLIPVisionConfig, image_token: int) -> LlavaConfig | LlavaNextConfig:
    """The stock config.

    Args:
        stored: that of the original checkpoint.
        vision: that of its tower.
        image_token: the id of "<image>".
    """
    given = _given(stored, vision, image_token, image_token)
    if stored.get("image_aspect_ratio") != "anyres":
        return LlavaConfig(**given, architectures=["LlavaForConditionalGeneration"])
    pinpoints = [[height, width] for width, height in stored["image_grid_pinpoints"]]
    return LlavaNextConfig(**given, image_grid_pinpoints=pinpoints, architectures=["LlavaNextForConditionalGeneration"])


def build_video_config(stored: dict, vision: dict, ids: list[int]) -> VideoLlavaConfig:
    """The stock config of a Video-LLaVA.

    Args:
        stored: that of the original checkpoint.
        vision: that of its towers, which are built alike.
        ids: of "<image>", "<video>" and "<pad>".
    """
    given = _given(stored, CLIPVisionConfig(**vision), ids[0], max(ids))
    return VideoLlavaConfig(
        **given,
        video_token_index=ids[1],
        video_seq_length=(given["image_seq_length"] + 1) * OVER_TIME["num_frames"],
        pad_token_id=ids[2],
        architectures=["VideoLlavaForConditionalGeneration"],
    )


def _given(stored: dict, vision: CLIPVisionConfig, image_token: int, last_token: int) -> dict:
    """What stock configs have in common; the vocabulary holds `last_token`."""
    text = OriginalConfig.from_dict(stored).to_dict()  # as the loader of this format reads it
    vision.dtype = None  # the model's counts
    own = {"architectures", "model_type", "transformers_version", "dtype"}
    known = (set(LlamaConfig().to_dict()) | {"max_sequence_length"}) - own
    text = {name: value for name, value in text.items() if name in known}
    text["vocab_size"] = -(-max(stored["vocab_size"], last_token + 1) // ROWS) * ROWS
    return {
        "vision_config": vision,
        "text_config": LlamaConfig(**text),
        "image_token_index": image_token,
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "vision_feature_layer": stored["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default",  # without [CLS]
        "tie_word_embeddings": stored.get("tie_word_embeddings", False),
        "dtype": stored_dtype(stored),
        **({"reduction": stored["reduction"]} if "reduction" in stored else {}),
    }


def write_settings(
    src: Path,
    stored: dict,
    tokenizer: LlamaSentencePieceTokenizer,
    tower: Path | None,
    config: PreTrainedConfig,
    folder: Path,
) -> None:
    """Write the settings of generation, tokenizer and processor.

    Args:
        tower: the folder of the vision tower; None for Video-LLaVA, whose pictures are prepared in one way.
    """
    file = src / "generation_config.json"
    generation = {name: stored[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in stored}
    generation = read_json(file) if file.is_file() else generation
    # Marked so, transformers may make it anew from the model's config.
    generation.pop("_from_model_config", None)
    added = range(max(stored["vocab_size"], len(tokenizer)), config.text_config.vocab_size)
    suppressed = {*(generation.get("suppress_tokens") or ()), *added, config.image_token_index}
    is_next, is_video = config.model_type == "llava_next", config.model_type == "video_llava"
    if is_video:
        generation["pad_token_id"] = config.pad_token_id
    write_json(folder / "generation_config.json", {**generation, "suppress_tokens": sorted(suppressed)})

    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    special |= {"pad_token": DEFAULT_PAD_TOKEN} if is_video else {}
    kind = f"{'Video' * is_video}Llava{'Next' * is_next}"
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": f"{kind}Processor"}
    limits = {"model_max_length": tokenizer.model_max_length, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {**names, **special, **limits, "padding_side": "left"})

    images = (CLIPImageProcessorPil() if tower is None else load_image_processor(tower)).to_dict()
    images |= {"image_processor_type": f"{kind}ImageProcessor", "processor_class": f"{kind}Processor"}
    if not is_video:
        images["do_pad"] = is_next or stored.get("image_aspect_ratio") == "pad"
    if is_next:
        images["image_grid_pinpoints"] = config.image_grid_pinpoints
    write_json(folder / "preprocessor_config.json", images)
    processor = {
        "processor_class": f"{kind}Processor",
        "image_token": DEFAULT_IMAGE_TOKEN,
        **({"video_token": DEFAULT_VIDEO_TOKEN} if is_video else {}),
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": 1,  # [CLS], which "default" takes off again
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    write_json(folder / "processor_config.json", processor)
    (folder / "chat_template.jinja").write_text(chat_template("llava_v1" if is_video else "vicuna_v1", is_video))


def write_json(file: Path, content: dict) -> None:
    """Write `content` into `file`."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def chat_template(conv_mode: str, has_videos: bool = False) -> str:
    """A conversation template in Jinja: images, and videos, come before the text of their turn, a system message
    replaces ours."""
    conversation = get_conversation(conv_mode)
    videos = r"{%- for part in content if part.type == 'video' -%}{{ '" + DEFAULT_VIDEO_TOKEN + r"\n' }}{%- endfor -%}"
    opening, answering = map(json.dumps, conversation.openings)
    lines = [
        "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- endif -%}",
        "{%- macro text(content) -%}",
        "{%- if content is string -%}{{ content }}{%- else -%}",
        r"{%- for part in content if part.type == 'image' -%}{{ '" + DEFAULT_IMAGE_TOKEN + r"\n' }}{%- endfor -%}",
        *([videos] if has_videos else []),
        "{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}",
        "{%- endif -%}",
        "{%- endmacro -%}",
        "{{ text(system) + ' ' if system is defined else " + json.dumps(conversation.system) + " }}",
        "{%- for message in messages if message.role != 'system' -%}",
        "{%- if message.role == 'user' -%}",
        "{{ " + f"{opening} + text(message.content) + {json.dumps(conversation.sep)}" + " }}",
        "{%- else -%}",
        "{{ " + f"{answering} + text(message.content) + {json.dumps(conversation.sep2)}" + " }}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}{{ " + json.dumps(conversation.openings[1].rstrip(" ")) + " }}{%- endif -%}",
    ]
    return "\n".join(lines)
