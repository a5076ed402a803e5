"""A tiny deterministic Qwen2.5-VL for the tests, and inputs for it."""

from functools import lru_cache

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

IMAGE_TOKEN, VIDEO_TOKEN, START, END = 95, 96, 97, 98
CHANNEL_VALUES = 392  # of a patch: 2 frames of 14 x 14 pixels, one channel after another


def normalised_patches(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 patches [N, 1176] -> what the image processor makes of them, bit for bit."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).repeat_interleave(CHANNEL_VALUES)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).repeat_interleave(CHANNEL_VALUES)
    return ((pixels.double() * (1 / 255)).float() - mean) / std


def tiny_config(num_layers: int = 4, **kwargs) -> Qwen2_5_VLConfig:
    """Four vision blocks, of which 1 and 3 have full attention; windows of 4 x 4 tokens."""
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": 100,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.2,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **kwargs,
    )


def config_of(cls: type):
    """The tiny config of a class; Qwen2-VL's tower has no windows, and other names for its sizes."""
    config = tiny_config()
    if cls is not Qwen2VLForConditionalGeneration:
        return config
    settings = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    text = {name: value for name, value in settings.pop("text_config").items() if name != "model_type"}
    settings["vision_config"] = {"depth": 4, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 32}
    return cls.config_class(text_config=text, **settings)


@lru_cache(maxsize=4)
def tiny_qwen(cls: type = Qwen2_5_VLForConditionalGeneration):
    """A tiny model, float32, eval mode; the same weights every time and for every class."""
    with torch.random.fork_rng():
        model = cls(config_of(cls)).eval()
        torch.manual_seed(0)
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05 if "patch_embed" in name else 0.25)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN, VIDEO_TOKEN, START]  # an answer holds no pictures
    return model


def image(height: int, width: int) -> tuple:
    """A picture of so many tokens, for `inputs_of`."""
    return (IMAGE_TOKEN, 1, height, width)


def video(steps: int, height: int, width: int) -> tuple:
    """A video of so many steps in time, for `inputs_of`."""
    return (VIDEO_TOKEN, steps, height, width)


def patches(place: tuple, seed: int) -> torch.Tensor:
    """Random patches of a picture or video: [steps * 4 * height * width, 1176]."""
    _, steps, height, width = place
    generator = torch.Generator().manual_seed(seed + 1000 * height + width)
    # Patches of one merged token are alike, and so are neighbours, as in pictures.
    coarse = torch.randn(steps * height * width, 1, CHANNEL_VALUES * 3, generator=generator)
    return (coarse + 0.5 * torch.randn(len(coarse), 4, CHANNEL_VALUES * 3, generator=generator)).flatten(0, 1)


def inputs_of(rows: list[list], side: str = "left", seed: int = 0) -> dict:
    """Prompts to the keywords of a call.

    Args:
        rows: token ids, `image(...)` and `video(...)`; pictures of one size are the same picture.
        side: where rows are padded.
    """
    ids, places = [], [part for row in rows for part in row if isinstance(part, tuple)]
    for row in rows:
        parts = ([START, *[p[0]] * (p[1] * p[2] * p[3]), END] if isinstance(p, tuple) else [p] for p in row)
        ids.append([token for part in parts for token in part])
    length = max(map(len, ids))
    padded, mask = [], []
    for row in ids:
        pad, keep = [0] * (length - len(row)), [1] * len(row)
        padded.append(pad + row if side == "left" else row + pad)
        mask.append(pad + keep if side == "left" else keep + pad)
    input_ids = torch.tensor(padded)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.tensor(mask),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).int() + 2 * (input_ids == VIDEO_TOKEN).int(),
    }
    for token, name, pixels in ((IMAGE_TOKEN, "image", "pixel_values"), (VIDEO_TOKEN, "video", "pixel_values_videos")):
        of_kind = [place for place in places if place[0] == token]
        if of_kind:
            inputs[pixels] = torch.cat([patches(place, seed) for place in of_kind])
            inputs[f"{name}_grid_thw"] = torch.tensor([[s, 2 * h, 2 * w] for _, s, h, w in of_kind])
    return inputs
