"""Stock transformers LLaVA (LLaVA-1.5): CLIP tower, MLP projector, Llama."""

from torch import nn

from ..compat import pooled
from .encoded import EncodedImages, Modality, all_finite
from .install import install_on_shell
from .towers import encode_views, grid_of


def fit(reduction, model: nn.Module) -> nn.Module:
    """Check that a LLaVA is put together in a way supported here, and fit the reduction to it.

    Returns:
        The multimodal model without its head.

    Raises:
        ValueError: naming what was expected and what came.
    """
    base = model.base_model
    if base is model:
        raise ValueError(f"expected the model that generates, got {type(model).__name__} inside it")
    for name, got, expected in (
        ("vision tower", base.config.vision_config.model_type, "clip_vision_model"),
        ("language model", base.config.text_config.model_type, "llama"),
    ):
        if got != expected:
            raise ValueError(f"{name}: expected {expected!r}, got {got!r}")
    check_features(base.config.vision_feature_layer, base.config.vision_feature_select_strategy)
    height, width = grid_of(base.vision_tower)
    reduction.fit(
        num_tokens=height * width,
        num_vision_layers=base.vision_tower.config.num_hidden_layers,
        num_decoder_layers=base.language_model.config.num_hidden_layers,
        compact_positions=True,
        text_config=base.language_model.config,
    )
    return base


def check_features(layer, strategy: str) -> None:
    """Raise ValueError for vision features other than one layer's patches."""
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer: expected one layer, got {layer}")
    if strategy != "default":
        raise ValueError(f"vision_feature_select_strategy: expected 'default', got {strategy!r}")


def install(model: nn.Module, reduction):
    """Install a reduction on a LlavaForConditionalGeneration; returns the function that undoes it."""
    base = fit(reduction, model)
    original = base.get_image_features

    def encode(pixel_values, vision_feature_layer=None, vision_feature_select_strategy=None, **kwargs):
        layer = base.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        check_features(layer, vision_feature_select_strategy or "default")
        if not reduction.reduces_views:
            return adopt(original(pixel_values=pixel_values, vision_feature_layer=layer, return_dict=True))
        features, kept, finite = encode_views(
            reduction, base.vision_tower, base.multi_modal_projector, pixel_values, layer
        )
        number = len(features)
        return EncodedImages(
            pooler_output=list(features),
            kept=list(kept),
            num_views=[1] * number,
            num_kept=[reduction.num_kept] * number,
            finite=finite,
        )

    def adopt(output) -> EncodedImages:
        features = pooled(output)
        sizes = [len(image) for image in features]
        return EncodedImages(
            pooler_output=features, num_views=[1] * len(sizes), num_kept=sizes, finite=all_finite(features)
        )

    images = Modality("image", "pixel_values", encode, None if reduction.reduces_views else adopt)
    return install_on_shell(model, reduction, [images])
