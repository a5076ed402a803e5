"""What a Video-LLaVA does otherwise than a LLaVA: clips beside pictures, whose pixels are prepared in its own order."""

import io
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import expand_image_tokens, load_image
from llava.video import NUM_FRAMES, ClipProcessor, read_clip
from vscan.compat import pixels_of_images


def sees_clips(config: Any) -> bool:
    """Whether a model's config is that of a Video-LLaVA, of either format."""
    return config.model_type == "video_llava" or getattr(config, "mm_video_tower", None) is not None


def clip_processor(image_processor: Any, is_original: bool) -> ClipProcessor:
    """What prepares clips and pictures, from what came with a checkpoint; one in the original format says nothing."""
    if is_original:
        return ClipProcessor()
    return ClipProcessor(image_processor, tuple(image_processor.image_mean), tuple(image_processor.image_std))


def read_pixels(source: str | io.BytesIO, processor: ClipProcessor, is_clip: bool, pad: bool) -> Tensor:
    """A clip as [3, 8, H, W], or a picture as [1, 3, H, W].

    Args:
        source: the file; of a picture also its content.
        pad: make a square of a picture, rather than cut its ends away.
    """
    return processor.video(read_clip(source)) if is_clip else processor.image(load_image(source), pad)[None]


def expanded(ids: list[int], config: Any, length: int, num_frames: int) -> list[int]:
    """Ids in Hugging Face's form, where a picture or a clip is a run of its own placeholders.

    Args:
        ids: with IMAGE_TOKEN_INDEX for a picture, or once for each frame of a clip.
        config: the model's.
        length: visual tokens of the picture or clip.
        num_frames: of the clip; 0 for a picture.
    """
    if not num_frames:
        return expand_image_tokens(ids, config.image_token_id, length)
    start = ids.index(IMAGE_TOKEN_INDEX)
    return [*ids[:start], *[config.video_token_id] * length, *ids[start + NUM_FRAMES :]]


def stock_inputs(model: Any, pixels: list[Tensor], are_clips: list[bool]) -> dict[str, Tensor]:
    """Pictures and clips, as a stock VideoLlavaForConditionalGeneration takes them."""
    pictures = [each for each, is_clip in zip(pixels, are_clips, strict=True) if not is_clip]
    clips = [each.transpose(0, 1) for each, is_clip in zip(pixels, are_clips, strict=True) if is_clip]
    inputs = {}
    if pictures:
        inputs[pixels_of_images(model.base_model)] = torch.cat(pictures)
    if clips:
        inputs["pixel_values_videos"] = torch.stack(clips)
    return inputs
