"""Tiny deterministic models for the tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from vscan.methods.base import Kept, Method, Views
from vscan.select.merge import merge

IMAGE_TOKEN = 99


def tiny_parts(num_layers: int, vision_layers: int, side: int, heads: int = 4, kv_heads: int = 2) -> tuple:
    """The configs of a tower with a side x side grid, and of a language model."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=4 * side,
        patch_size=4,
        projection_dim=16,
    )
    text = LlamaConfig(
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
    )
    return vision, text


def seeded(build: Callable):
    """A model whose answers do not end and hold no pictures: float32, eval mode, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        for name, parameter in model.named_parameters():
            if "vision_tower" in name and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]
    return model


def tiny_llava(
    num_layers: int = 6, vision_layers: int = 7, side: int = 12, heads: int = 4, kv_heads: int = 2, **kwargs
):
    """A LlavaForConditionalGeneration with a side x side grid."""
    vision, text = tiny_parts(num_layers, vision_layers, side, heads, kv_heads)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **kwargs,
    )
    return seeded(lambda: LlavaForConditionalGeneration(config))


def tiny_next(num_layers: int = 4, vision_layers: int = 4, side: int = 8):
    """A LlavaNextForConditionalGeneration that cuts every picture into two tiles, beside or above each other."""
    vision, text = tiny_parts(num_layers, vision_layers, side)
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[4 * side, 8 * side], [8 * side, 4 * side]],
    )
    return seeded(lambda: LlavaNextForConditionalGeneration(config))


def tiny_original(num_layers: int = 4, vision_layers: int = 4, side: int = 8, tiles: bool = False):
    """A LLaVA in the original format; `tiles`: of any resolution, as `tiny_next`."""
    from llava.model.language_model.llava_llama import LlavaConfig as OriginalConfig
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    vision, text = tiny_parts(num_layers, vision_layers, side)
    settings = {"mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    if tiles:
        settings |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        settings |= {"image_grid_pinpoints": [[4 * side, 8 * side], [8 * side, 4 * side]]}

    def build():
        model = LlavaLlamaForCausalLM(OriginalConfig(**{**text.to_dict(), "model_type": "llava_llama"}, **settings))
        model.model.vision_tower = CLIPVisionTower(CLIPVisionModel(vision), -2)
        return model

    return seeded(build)


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 5e-5) -> None:
    """Equal but for a share of the largest value compared, which one absolute number is not on every CPU.

    What float32 loses on the way through a tiny model is 1e-5 of that on one CPU; a wrong column costs 1e-2.
    """
    torch.testing.assert_close(got, expected, atol=rtol * expected.abs().max().item(), rtol=0)


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


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 crops [V, 3, H, W] -> what the CLIP processor makes of them, bit for bit."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return ((pixels.double() * (1 / 255)).float() - mean) / std


def to_hugging_face(original, image_token: int):
    """The stock model with the weights of one in the original format.

    Args:
        original: a LlavaLlamaForCausalLM.
        image_token: an id of its vocabulary that no prompt uses.
    """
    tower = original.model.vision_tower.vision_tower
    stored = original.config.to_dict()
    is_next = stored.get("image_aspect_ratio") == "anyres"
    given = {
        "vision_config": tower.config,
        "text_config": LlamaConfig(**{**stored, "model_type": "llama", "architectures": None}),
        "image_token_index": image_token,
        "vision_feature_layer": stored["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default",
    }
    if is_next:  # heights come first here
        pinpoints = [pair[::-1] for pair in stored["image_grid_pinpoints"]]
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**given, image_grid_pinpoints=pinpoints)).eval()
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**given)).eval()
    state = {f"model.vision_tower.{name}": value for name, value in tower.state_dict().items()}
    for name, value in original.state_dict().items():
        if name.startswith("model.mm_projector."):
            part, kind = name.removeprefix("model.mm_projector.").split(".")
            state[f"model.multi_modal_projector.linear_{1 if part == '0' else 2}.{kind}"] = value
        elif name.startswith(("lm_head.", "model.image_newline")):
            state[name] = value
        elif not name.startswith("model.vision_tower."):
            state["model.language_model." + name.removeprefix("model.")] = value
    model.load_state_dict(state)
    model.generation_config = original.generation_config
    return model


def encoded(method: Method, views: Views, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a method keeps of views as the decoder will see it, [V, num, D], and the slots, long [V, num]."""
    kept = method.encode(views, num)
    if kept.values is None:
        return views.project(views.features.take_along_dim(kept.slots.unsqueeze(-1), dim=1)), kept.slots
    return kept.values, kept.slots


@dataclass(frozen=True)
class Injected(Method):
    """A method whose selection was made elsewhere; register it in `vscan.METHODS` for a test.

    Args:
        slots: kept tokens in raster order: the same for every view, or a tuple of them for each.
        merged: merge dropped tokens, as VScan does.
    """

    slots: tuple = ()
    merged: bool = True

    def encode(self, views, num):
        slots = torch.tensor(self.slots).expand(len(views.features), num)
        return Kept(slots, merge(views.project(views.features), slots) if self.merged else None)
