"""Stock transformers LLaVA-NeXT: every crop is a view; crops are put together, unpadded and given newlines as before.

Reduced crops stay full-size, dropped rows flagged, until the model's own packing has run: what unpadding cuts away is
lost, newlines stay, and the decoder ranks every placeholder that is left.
"""

import torch
from torch import Tensor, nn

from ..compat import image_size_to_num_patches, pack_crops, pooled
from .clip import encode_views
from .llava import check_features, fit
from .shell import EncodedImages, Modality, install_on_shell


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
    config, encode = base.config, base.get_image_features

    def get_image_features(
        pixel_values, image_sizes, vision_feature_layer=None, vision_feature_select_strategy=None, **kwargs
    ):
        crops = num_crops(config, image_sizes)
        if reduction.num_kept == reduction.num_tokens:
            kwargs |= {
                "vision_feature_layer": vision_feature_layer,
                "vision_feature_select_strategy": vision_feature_select_strategy,
                "return_dict": True,
            }
            images = pooled(encode(pixel_values, image_sizes, **kwargs))
        else:
            layer = config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
            check_features(layer, vision_feature_select_strategy or "default")
            if pixel_values.ndim == 5:
                pixel_values = torch.cat([image[:number] for image, number in zip(pixel_values, crops, strict=True)])
            views = encode_views(reduction, base.vision_tower, base.multi_modal_projector, pixel_values, layer)
            images = pack_crops(base, views.split(crops), image_sizes, base.image_newline)
        for image, number in zip(images, crops, strict=True):
            image.num_views = number  # generate forgets image_sizes once it has the features
        return EncodedImages(pooler_output=images)

    def sizes_of(kwargs: dict) -> tuple[list[int], list[int], list[int] | None]:
        encoded = images.encoded(kwargs)
        if encoded is None:
            sizes, crops = image_lengths(base, kwargs["image_sizes"], reduction.num_tokens)
        else:
            sizes = [len(image) for image in encoded.pooler_output]
            crops = [image.num_views for image in encoded.pooler_output]
        # How many tokens unpadding cuts away depends on the picture.
        return sizes, crops, None if reduction.num_kept < reduction.num_tokens else sizes

    images = Modality("image", "pixel_values", sizes_of, get_image_features)
    return install_on_shell(model, reduction, [images])
