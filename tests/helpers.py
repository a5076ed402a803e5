"""Tiny deterministic models for the tests."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 99


def tiny_llava(num_layers: int = 6, vision_layers: int = 7, side: int = 12, heads: int = 4, kv_heads: int = 2, **kwargs):
    """A LlavaForConditionalGeneration with a side x side grid, float32, eval mode; the same weights every time."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=vision_layers,
            num_attention_heads=4,
            image_size=4 * side,
            patch_size=4,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=2048,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **kwargs,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if "vision_tower" in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # an answer holds no pictures
    return model


def prompt(rows: list[list[int | str]], num_tokens: int, seed: int = 0, side: str = "left"):
    """Token rows to model inputs: "image" stands for `num_tokens` placeholders; rows are padded at one side.

    Returns:
        input_ids, attention_mask (None where nothing is padded), pixel size is the model's business.
    """
    ids = []
    for row in rows:
        ids.append([token for part in row for token in ([IMAGE_TOKEN] * num_tokens if part == "image" else [part])])
    length = max(map(len, ids))
    padded, mask = [], []
    for row in ids:
        pad = [0] * (length - len(row))
        keep = [1] * len(row)
        padded.append(pad + row if side == "left" else row + pad)
        mask.append(pad + keep if side == "left" else keep + pad)
    return torch.tensor(padded), torch.tensor(mask)


def pictures(model, number: int, seed: int = 0) -> torch.Tensor:
    """`number` random pictures for a model, [number, 3, H, W]."""
    size = model.config.vision_config.image_size
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))
