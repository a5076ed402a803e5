"""What lies beside the weights of a converted checkpoint: the configs of model, generation, tokenizer and processor."""

import json
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig, PreTrainedConfig

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_conversation
from llava.mm_utils import load_image_processor
from llava.tokenizer import LlamaSentencePieceTokenizer
from vscan.io.checkpoint import read_json, stored_dtype

from .language_model.llava_llama import LlavaConfig as OriginalConfig

ROWS = 64  # the vocabulary grows to a multiple of this, as in published conversions


def build_config(stored: dict, vision: CLIPVisionConfig, image_token: int) -> LlavaConfig | LlavaNextConfig:
    """The stock config.

    Args:
        stored: that of the original checkpoint.
        vision: that of its tower.
        image_token: the id of "<image>".
    """
    text = OriginalConfig.from_dict(stored).to_dict()  # as the loader of this format reads it
    vision.dtype = None  # the model's counts
    own = {"architectures", "model_type", "transformers_version", "dtype"}
    known = (set(LlamaConfig().to_dict()) | {"max_sequence_length"}) - own
    text = {name: value for name, value in text.items() if name in known}
    text["vocab_size"] = -(-max(stored["vocab_size"], image_token + 1) // ROWS) * ROWS
    given = {
        "vision_config": vision,
        "text_config": LlamaConfig(**text),
        "image_token_index": image_token,
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "vision_feature_layer": stored["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default",  # without [CLS]
        "tie_word_embeddings": stored.get("tie_word_embeddings", False),
        "dtype": stored_dtype(stored),
    }
    if "reduction" in stored:
        given["reduction"] = stored["reduction"]
    if stored.get("image_aspect_ratio") != "anyres":
        return LlavaConfig(**given, architectures=["LlavaForConditionalGeneration"])
    pinpoints = [[height, width] for width, height in stored["image_grid_pinpoints"]]
    return LlavaNextConfig(**given, image_grid_pinpoints=pinpoints, architectures=["LlavaNextForConditionalGeneration"])


def write_settings(
    src: Path, stored: dict, tokenizer: LlamaSentencePieceTokenizer, tower: Path, config: PreTrainedConfig, folder: Path
) -> None:
    """Write the settings of generation, tokenizer and processor."""
    file = src / "generation_config.json"
    generation = {name: stored[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in stored}
    generation = read_json(file) if file.is_file() else generation
    # Marked so, transformers may make it anew from the model's config.
    generation.pop("_from_model_config", None)
    added = range(max(stored["vocab_size"], len(tokenizer)), config.text_config.vocab_size)
    suppressed = {*(generation.get("suppress_tokens") or ()), *added, config.image_token_index}
    write_json(folder / "generation_config.json", {**generation, "suppress_tokens": sorted(suppressed)})

    is_next = config.model_type == "llava_next"
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": _processor(is_next)}
    limits = {"model_max_length": tokenizer.model_max_length, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {**names, **special, **limits, "padding_side": "left"})

    images = load_image_processor(tower).to_dict()
    images |= {"image_processor_type": f"Llava{'Next' * is_next}ImageProcessor", "processor_class": _processor(is_next)}
    images["do_pad"] = is_next or stored.get("image_aspect_ratio") == "pad"
    if is_next:
        images["image_grid_pinpoints"] = config.image_grid_pinpoints
    write_json(folder / "preprocessor_config.json", images)
    processor = {
        "processor_class": _processor(is_next),
        "image_token": DEFAULT_IMAGE_TOKEN,
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": 1,  # [CLS], which "default" takes off again
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    write_json(folder / "processor_config.json", processor)
    (folder / "chat_template.jinja").write_text(chat_template("vicuna_v1"))


def _processor(is_next: bool) -> str:
    return f"Llava{'Next' * is_next}Processor"


def write_json(file: Path, content: dict) -> None:
    """Write `content` into `file`."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def chat_template(conv_mode: str) -> str:
    """A conversation template in Jinja: images come before the text of their turn, a system message replaces ours."""
    conversation = get_conversation(conv_mode)
    opening, answering = map(json.dumps, conversation.openings)
    lines = [
        "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- endif -%}",
        "{%- macro text(content) -%}",
        "{%- if content is string -%}{{ content }}{%- else -%}",
        r"{%- for part in content if part.type == 'image' -%}{{ '" + DEFAULT_IMAGE_TOKEN + r"\n' }}{%- endfor -%}",
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
