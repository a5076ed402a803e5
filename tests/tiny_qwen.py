"""A Qwen2.5-VL small enough to run anywhere, with random weights, in the layout of the published checkpoints."""

import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

TEXT = """system You are a helpful assistant. user assistant
What is in the picture? A red circle beside a blue square on a grey ground. Locate the yellow star in this image and
output the bbox coordinates in JSON format. How many green triangles? Answer the question using a single word or phrase.
[12, 34, 56, 78], [90, 12, 34, 56], {"bbox_2d": [7, 8, 9, 10]}
"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write a checkpoint: 6 decoder layers, 64 wide; 4 vision blocks, 32 wide, two of them with full attention.

    The config is flat, as the published ones, and so are the weights' names; generation punishes repetition.
    """
    folder.mkdir(parents=True)
    ids = _write_tokenizer(folder)
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "vocab_size": max(ids.values()) + 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "initializer_range": 0.2,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
    }
    preprocessor = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2}
    preprocessor |= {"merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}
    generation = {"do_sample": True, "temperature": 1e-06, "repetition_penalty": 1.05}
    generation |= {"pad_token_id": ids["<|endoftext|>"], "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
        for name, parameter in model.named_parameters():
            if "visual" in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        for name in SPECIAL:
            if name != "<|im_end|>":
                model.lm_head.weight.data[ids[name]] = 0
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """Write a byte-level BPE tokenizer of some hundred pieces; returns the ids of SPECIAL."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=400, show_progress=False)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    settings |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 32768}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {name: tokenizer.token_to_id(name) for name in SPECIAL}
