"""Stock transformers LLaVA-NeXT: every crop is a view; crops are put together, unpadded and given newlines as before.

Reduced crops stay full-size until the model's own packing has run, and which of their tokens are left goes the same way
beside them: what unpadding cuts away is lost, newlines stay, and the decoder ranks every placeholder that is left.
"""

import torch
from torch import Tensor, nn

from ..compat import image_size_to_num_patches, pack_crops, pooled
from .encoded import EncodedImages, Modality, all_finite
from .install import install_on_shell
from .llava import check_features, fit
from .towers import encode_views


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


def install(model: nn.Module, reduction):
    """Install a reduction on a LlavaNextForConditionalGeneration; returns the function that undoes it."""
    base = fit(reduction, model)
    config, original = base.config, base.get_image_features

    def encode(pixel_values, image_sizes, vision_feature_layer=None, vision_feature_select_strategy=None, **kwargs):
        crops = num_crops(config, image_sizes)
        layer = config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        check_features(layer, vision_feature_select_strategy or "default")
        if not reduction.reduces_views:
            output = original(
                pixel_values=pixel_values, image_sizes=image_sizes, vision_feature_layer=layer, return_dict=True
            )
            images = pooled(output)
            sizes = [len(image) for image in images]
            return EncodedImages(pooler_output=images, num_views=crops, num_kept=sizes, finite=all_finite(images))
        if pixel_values.ndim == 5:
            pixel_values = torch.cat([image[:number] for image, number in zip(pixel_values, crops, strict=True)])
        views, kept, finite = encode_views(
            reduction, base.vision_tower, base.multi_modal_projector, pixel_values, layer
        )
        images = pack_crops(base, views.split(crops), image_sizes, base.image_newline)
        # Which are left goes the way of the features, as numbers: newlines stay, and what unpadding cuts away is lost.
        numbers = kept.to(views.dtype).unsqueeze(-1).split(crops)
        left = pack_crops(base, numbers, image_sizes, torch.ones(1, dtype=views.dtype, device=views.device))
        left = [image[:, 0] > 0 for image in left]
        # How many tokens unpadding cuts away depends on the picture.
        return EncodedImages(pooler_output=images, kept=left, num_views=crops, num_kept=None, finite=finite)

    return install_on_shell(model, reduction, [Modality("image", "pixel_values", encode)])
