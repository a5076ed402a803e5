"""Tiny deterministic Video-LLaVAs in both formats for the tests, and inputs for them."""

import torch
from helpers import IMAGE_TOKEN, prompt, seeded, tiny_parts
from transformers import CLIPVisionModel, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from vscan.compat import pixels_of_images

VIDEO_TOKEN, NUM_FRAMES, SIDE = 98, 3, 8


def tiny_video_llava(num_layers: int = 4, vision_layers: int = 4):
    """A VideoLlavaForConditionalGeneration with an 8 x 8 grid."""
    vision, text = tiny_parts(num_layers, vision_layers, SIDE)
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = varied(seeded(lambda: VideoLlavaForConditionalGeneration(config)))
    model.generation_config.suppress_tokens = [IMAGE_TOKEN, VIDEO_TOKEN]
    return model


def tiny_original_video(num_layers: int = 4, vision_layers: int = 4, over_time: bool = True):
    """A Video-LLaVA in the original format, whose video tower attends over 3 frames."""
    from llava.model.language_model.llava_llama import LlavaConfig
    from llava.model.language_model.video_llava_llama import VideoLlavaLlamaForCausalLM
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.model.multimodal_encoder.video_encoder import TemporalCLIP, VideoTower

    vision, text = tiny_parts(num_layers, vision_layers, SIDE)
    vision.num_frames, vision.add_time_attn = NUM_FRAMES, over_time
    settings = {"mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    settings |= {"mm_image_tower": "image", "mm_video_tower": "video"}

    def build():
        model = VideoLlavaLlamaForCausalLM(LlavaConfig(**{**text.to_dict(), "model_type": "llava_llama"}, **settings))
        model.model.vision_tower = CLIPVisionTower(CLIPVisionModel(vision), -2)
        model.model.video_tower = VideoTower(TemporalCLIP(vision), -2)
        return model

    return varied(seeded(build))


def varied(model):
    """The same with towers whose weights are large enough for every part to matter."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "_tower" in name and parameter.ndim > 1:
            parameter.data.normal_(std=0.2, generator=generator)
    return model


def picture(seed: int = 0) -> torch.Tensor:
    """A random image, always the same for a seed: [3, H, W]."""
    return torch.randn(3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(seed))


def clip(seed: int = 0, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    """A random clip, whose frames have something in common: [3, T, H, W]."""
    generator = torch.Generator().manual_seed(100 + seed)
    still = torch.randn(3, 1, 4 * SIDE, 4 * SIDE, generator=generator)
    return still + 0.7 * torch.randn(3, num_frames, 4 * SIDE, 4 * SIDE, generator=generator)


def inputs_of(model, rows: list[list], side: str = "left") -> dict:
    """Prompts to the keywords of a call of either format.

    Args:
        rows: token ids, images [3, H, W] and clips [3, T, H, W].
        side: where rows are padded.
    """
    parts = [part for row in rows for part in row if isinstance(part, torch.Tensor)]
    images, clips = ([part for part in parts if part.ndim == ndim] for ndim in (3, 4))
    is_original, pixels = hasattr(model, "encode_images"), {}

    def places(part: torch.Tensor) -> list[int]:
        number = 1 if part.ndim == 3 else part.shape[1]
        if is_original:
            return [IMAGE_TOKEN_INDEX] * number
        return [IMAGE_TOKEN] * SIDE**2 if part.ndim == 3 else [VIDEO_TOKEN] * number * (1 + SIDE**2)

    if is_original:
        pixels = {"images": parts} if parts else {}
    else:
        if images:
            pixels[pixels_of_images(model.base_model)] = torch.stack(images)
        if clips:
            pixels["pixel_values_videos"] = torch.stack(clips).transpose(1, 2)
    rows = [[i for part in row for i in (places(part) if isinstance(part, torch.Tensor) else [part])] for row in rows]
    ids, mask = prompt(rows, 0, side=side)
    return {"input_ids": ids, "attention_mask": mask, **pixels}
