"""Stock transformers LLaVA (LLaVA-1.5): CLIP tower, MLP projector, Llama."""

from contextlib import ExitStack

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..prompt import VisualPrompt, padding_mask
from .clip import encode_views, grid_of
from .shell import guard_generate, hand_over, refuse_labels, replace_method, swap_decoder


def check(config) -> None:
    """Raise ValueError for a LLaVA that is put together in a way not supported here."""
    for name, got, expected in (
        ("vision tower", config.vision_config.model_type, "clip_vision_model"),
        ("language model", config.text_config.model_type, "llama"),
    ):
        if got != expected:
            raise ValueError(f"{name}: expected {expected!r}, got {got!r}")
    check_features(config.vision_feature_layer, config.vision_feature_select_strategy)


def check_features(layer, strategy: str) -> None:
    """Raise ValueError for vision features other than one layer's patches."""
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer: expected one layer, got {layer}")
    if strategy != "default":
        raise ValueError(f"vision_feature_select_strategy: expected 'default', got {strategy!r}")


def install(model: nn.Module, reduction):
    """Install a reduction on a LlavaForConditionalGeneration; returns the function that undoes it."""
    base = model.base_model
    if base is model:
        raise ValueError(f"expected the model that generates, got {type(model).__name__} inside it")
    check(base.config)
    height, width = grid_of(base.vision_tower)
    reduction.fit(
        num_tokens=height * width,
        num_vision_layers=base.vision_tower.config.num_hidden_layers,
        num_decoder_layers=base.language_model.config.num_hidden_layers,
        compact_positions=True,
        text_config=base.language_model.config,
        dtype=base.language_model.dtype,
    )

    def get_image_features(pixel_values, vision_feature_layer=None, vision_feature_select_strategy=None, **kwargs):
        layer = base.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        check_features(layer, vision_feature_select_strategy or "default")
        features = encode_views(reduction, base.vision_tower, base.multi_modal_projector, pixel_values, layer)
        return BaseModelOutputWithPooling(pooler_output=list(features))

    def describe(kwargs) -> VisualPrompt | None:
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if kwargs.get("pixel_values") is None and encoded is None:
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "expected input_ids with pixel_values while visual tokens are reduced, got inputs_embeds: "
                    "which of them are visual cannot be told"
                )
            return None
        input_ids, attention_mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if input_ids is None:
            raise ValueError("expected input_ids beside pixel_values while visual tokens are reduced, got None")
        return VisualPrompt.read(
            visual=input_ids == base.config.image_token_id,
            attention_mask=padding_mask(attention_mask, input_ids.shape[1]),
            tokens_per_view=reduction.num_tokens,
            kept_per_view=reduction.num_kept,
            num_views=len(kwargs["pixel_values"] if encoded is None else encoded.pooler_output),
        )

    with ExitStack() as undo:
        swap_decoder(undo, base.language_model, reduction)
        hand_over(undo, base, describe)
        if reduction.num_kept < reduction.num_tokens:
            replace_method(undo, base, "get_image_features", get_image_features)
        guard_generate(undo, model)
        refuse_labels(undo, model)
        return undo.pop_all().close
