"""Stock transformers LLaVA-NeXT: every crop is a view; crops are put together, unpadded and given newlines as before.

Reduced crops stay full-size until the model's own packing has run, and which of their tokens are left goes the same way
beside them: what unpadding cuts away is lost, newlines stay, and the decoder ranks every placeholder that is left.
"""

import torch
from torch import Tensor, nn

from ..compat import get_anyres_image_grid_shape as tile_grid
from ..compat import image_size_to_num_patches, pack_crops
from ..methods.base import Layout, Views
from .encoded import EncodedImages
from .llava import Llava
from .towers import clip_views


def num_crops(config, image_sizes: Tensor) -> list[int]:
    """How many crops each picture is cut into; image_sizes is long [num_images, 2], height and width."""
    side = config.vision_config.image_size
    return [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in image_sizes]


def image_lengths(base: nn.Module, image_sizes: Tensor, num_tokens: int) -> tuple[list[int], list[int]]:
    """Placeholders and crops of each picture, before any reduction.

    Args:
        base: a LlavaNextModel.
        image_sizes: long [num_images, 2], height and width.
        num_tokens: tokens of a crop.
    """
    crops = num_crops(base.config, image_sizes)
    blank = [torch.empty(number, num_tokens, 1) for number in crops]
    return [len(image) for image in pack_crops(base, blank, image_sizes, torch.empty(1))], crops


class LlavaNext(Llava):
    """LlavaNextForConditionalGeneration."""

    packs_all = False  # how many tokens unpadding cuts away depends on the picture

    def num_views(self, call: dict) -> list[int]:
        self.feature_layer(call)
        return num_crops(self.base.config, call["image_sizes"])

    def views(self, call: dict, reduction) -> tuple[list[tuple[Views, list[int]]], Tensor]:
        pixels, crops = call["pixel_values"], self.num_views(call)
        if pixels.ndim == 5:
            pixels = torch.cat([image[:number] for image, number in zip(pixels, crops, strict=True)])
        layouts = None
        if reduction.fitted.group == "image":
            layouts = [self.layout(size, number) for size, number in zip(call["image_sizes"], crops, strict=True)]
        tower, project = self.base.vision_tower, self.base.multi_modal_projector
        return clip_views(reduction, tower, project, pixels, self.feature_layer(call), crops, layouts)

    def layout(self, image_size: Tensor, num_views: int) -> Layout:
        """How the crops of a picture lie: token numbers, from 1, sent through the model's own packing."""
        config = self.base.config
        num_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        numbers = torch.arange(1.0, num_views * num_tokens + 1).view(num_views, num_tokens, 1)
        packed = pack_crops(self.base, [numbers], image_size.cpu().unsqueeze(0), torch.zeros(1))[0]
        seen = torch.zeros(num_views * num_tokens + 1, dtype=torch.bool)
        seen[packed[:, 0].long()] = True
        tiles = tile_grid(image_size, config.image_grid_pinpoints, config.vision_config.image_size)
        return Layout(tuple(tiles), seen[1:].view(num_views, num_tokens))

    def pack(self, crops: list[Tensor], call: dict, newline: Tensor | None = None) -> list[Tensor]:
        return pack_crops(
            self.base, crops, call["image_sizes"], self.base.image_newline if newline is None else newline
        )

    def adopt(self, output) -> EncodedImages | None:
        return None  # how many crops a picture has cannot be told from its features
