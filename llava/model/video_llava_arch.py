"""What makes a LLaVA a Video-LLaVA: clips beside images, and a placeholder for every frame."""

import torch
from torch import Tensor

from vscan.checks.guards import check_finite
from vscan.models.encoded import EncodedImages, all_finite
from vscan.models.frames import reduced_clips, whole_clips
from vscan.models.towers import clip_views

from .llava_arch import LlavaMetaForCausalLM


class VideoLlavaMetaForCausalLM(LlavaMetaForCausalLM):
    """The shell's side of a Video-LLaVA.

    Modifications:
    - `images` holds images [3, H, W] and clips [3, T, H, W] in any order. A clip takes T placeholders, and each of them
      as many rows as a frame has tokens, [CLS] first.
    """

    reduction_family = "llava.model.family:OriginalVideoLlava"

    def encode_videos(self, clips: Tensor, texts: list | None = None) -> EncodedImages:
        """Encode and project clips; under a reduction each frame keeps its budget, or all of a clip share one.

        Args:
            clips: [n, 3, T, H, W].
            texts: of every frame, where the method reads text.

        Raises:
            ValueError: for features that are not finite.
        """
        tower, project, reduction = self.model.video_tower, self.model.mm_projector, self.model.reduction
        number, num_frames = len(clips), clips.shape[2]
        frames = clips.to(self.dtype).transpose(1, 2).flatten(0, 1)
        if reduction is None or not reduction.fitted.reduces_frames:
            features = project(tower(frames))
            finite = None if reduction is None else all_finite([features])
            encoded = whole_clips(features, num_frames)
        else:
            given = (reduction, tower.vision_tower, project, frames, tower.select_layer, [num_frames] * number)
            ((views, _),), finite = clip_views(*given, texts=texts)
            encoded = reduced_clips(reduction.fitted, views, num_frames)
        check_finite(finite, self.dtype)
        return encoded

    def embed_images(
        self,
        images: Tensor | list[Tensor] | None,
        image_sizes: list | None = None,
        prompts: list[list[int]] | None = None,
    ) -> EncodedImages | None:
        """Encode images and clips, all of a kind at once; None where there is none.

        Args:
            images: [n, 3, H, W], [n, 3, T, H, W], or a list of images [3, H, W] (or [1, 3, H, W]) and clips
                [3, T, H, W].
            image_sizes: of the pictures; they have no say.
            prompts: token ids of the prompts that hold them, where a method reads text.
        """
        shapes = [] if images is None else [(is_clip(image), tuple(image.shape[-4:])) for image in images]
        views, parts = self.placeholders(images), {}
        texts = None if images is None else self.texts_of(prompts, images, views)
        for clips, shape in dict.fromkeys(shapes):
            numbers = [number for number, each in enumerate(shapes) if each == (clips, shape)]
            stacked = torch.stack([images[number] for number in numbers])
            own = texts and [text for number in numbers for text in texts[sum(views[:number]) :][: views[number]]]
            embed = self.encode_videos if clips else self.embed_views
            encoded = embed(stacked if clips else stacked.view(-1, *shape[-3:]), own)
            parts |= {number: (encoded, place) for place, number in enumerate(numbers)}
        return EncodedImages.mixed([parts[number] for number in range(len(parts))]) if parts else None

    def placeholders(self, images: Tensor | list[Tensor] | None) -> list[int]:
        """How many placeholders each image and each clip takes in a prompt.

        Raises:
            ValueError: for another shape, or another number of frames than the tower attends over.
        """
        frames, side = self.model.video_tower.num_frames, self.model.video_tower.vision_tower.config.image_size
        found = []
        for image in [] if images is None else images:
            shape = list(image.shape)
            if shape in ([3, side, side], [1, 3, side, side]):
                found.append(1)
            elif len(shape) == 4 and shape[::2] == [3, side] and shape[3] == side and shape[1] == (frames or shape[1]):
                found.append(shape[1])
            else:
                raise ValueError(
                    f"images: expected images of shape [3, {side}, {side}] and videos of shape "
                    f"[3, {frames or 'frames'}, {side}, {side}], got one of shape {shape}"
                )
        return found

    def placeholders_of(self, encoded: EncodedImages) -> list[int]:
        return encoded.num_views


def is_clip(image: Tensor) -> bool:
    """Whether what came is a clip [3, T, H, W]; before an image may stand a dimension of 1."""
    return image.ndim == 4 and image.shape[0] != 1
