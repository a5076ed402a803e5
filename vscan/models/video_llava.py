"""Stock transformers Video-LLaVA: a CLIP tower for images, one for the frames of clips, MLP projector, Llama.

Published conversions have lost the video tower's attention over time, which transformers' class has no place for: the
original format (`llava.model`) has it. Images are as in LLaVA; a clip's frames are `vscan.models.frames`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..compat import pixels_of_images, pooled
from .encoded import EncodedImages, all_finite
from .frames import is_cls, reduced_clips, whole_clips
from .llava import Llava
from .texts import texts_of_call
from .towers import clip_views


class VideoLlava(Llava):
    """VideoLlavaForConditionalGeneration: an image is a view, and so is every frame of a video, beside its [CLS]."""

    has_frames = True

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.pixels = {"image": pixels_of_images(self.base), "video": "pixel_values_videos"}

    @property
    def tower(self) -> nn.Module:
        return self.base.image_tower

    def prompt_of(self, inputs: dict):
        return super().prompt_of(self.as_named(inputs))

    def as_named(self, call: dict) -> dict:
        """A call's keywords with the images under the name that this transformers has for them."""
        given = {name: value for name, value in call.items() if name not in ("pixel_values", "pixel_values_images")}
        images = [value for name, value in call.items() if name not in given and value is not None]
        return {**given, self.pixels["image"]: images[0]} if images else given

    def encode(self, reduction, name: str, original: Callable, call: dict) -> EncodedImages:
        if name == "image":
            return super().encode(reduction, name, original, self.as_named(call))
        clips = call[self.pixels["video"]]
        if clips.ndim != 5:
            raise ValueError(f"expected videos of shape [number, frames, 3, H, W], got {list(clips.shape)}")
        number, num_frames = clips.shape[:2]
        if not reduction.fitted.reduces_frames:
            features = torch.stack(pooled(original(**{**call, "return_dict": True})))
            images = whole_clips(features, num_frames)
            images.finite = all_finite([features])
            return images
        tower, project = self.base.video_tower, self.base.multi_modal_projector
        given = (reduction, tower, project, clips.flatten(0, 1), self.feature_layer(call), [num_frames] * number)
        ((views, _),), finite = clip_views(*given)
        if reduction.read is not None and reduction.fitted.reduces_views:
            sizes, frames = [num_frames * (1 + reduction.fitted.num_tokens)] * number, [num_frames] * number
            texts = texts_of_call(reduction, self.base.config, name, self.pixels, sizes, frames)
            views = replace(views, text=texts)
        images = reduced_clips(reduction.fitted, views, num_frames)
        images.finite = finite
        return images

    def adopt(self, output) -> EncodedImages | None:
        images, fitted = super().adopt(output), self.base.language_model.reduction.fitted
        if images is None or fitted.reduces_frames:
            return None
        size = len(images.pooler_output[0])
        if size > fitted.num_tokens:  # frames, whose clips cannot be told, and need not be
            images.num_apart = [1] * len(images.pooler_output)
            images.apart = [is_cls(1, size, images.pooler_output[0].device)] * len(images.pooler_output)
        return images

    def shown(self, images: EncodedImages) -> EncodedImages:
        """The same with the features as one tensor [1, M, D], as this shell takes them."""
        return EncodedImages(pooler_output=torch.cat(images.pooler_output).unsqueeze(0))
