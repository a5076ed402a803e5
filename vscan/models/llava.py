"""Stock transformers LLaVA (LLaVA-1.5): CLIP tower, MLP projector, Llama."""

from typing import Any

from torch import Tensor, nn

from ..compat import pooled
from ..config import ReductionConfig
from ..methods.base import Method, Views
from ..plan import Fitted
from .encoded import EncodedImages, all_finite
from .family import ViewFamily
from .towers import clip_views, grid_of


class Llava(ViewFamily):
    """LlavaForConditionalGeneration: a picture is one view."""

    has_frames = False

    def __init__(self, model: nn.Module):
        super().__init__(model)
        config = self.base.config
        for name, got, expected in (
            ("vision tower", config.vision_config.model_type, "clip_vision_model"),
            ("language model", config.text_config.model_type, "llama"),
        ):
            if got != expected:
                raise ValueError(f"{name}: expected {expected!r}, got {got!r}")
        self.feature_layer({})

    @property
    def tower(self) -> nn.Module:
        """What sees images."""
        return self.base.vision_tower

    def fit(self, config: ReductionConfig, method: Method) -> Fitted:
        tower = self.tower
        height, width = grid_of(tower)
        return Fitted.of(
            config,
            method,
            num_tokens=height * width,
            num_vision_layers=tower.config.num_hidden_layers,
            depth=self.feature_layer({}) % (tower.config.num_hidden_layers + 1),
            text_config=self.base.language_model.config,
            has_frames=self.has_frames,
        )

    def feature_layer(self, call: dict[str, Any]) -> int:
        """The layer that a call reads; ValueError for features other than one layer's patches."""
        layer = call.get("vision_feature_layer")
        layer = self.base.config.vision_feature_layer if layer is None else layer
        strategy = call.get("vision_feature_select_strategy") or self.base.config.vision_feature_select_strategy
        if not isinstance(layer, int):
            raise ValueError(f"vision_feature_layer: expected one layer, got {layer}")
        if strategy != "default":
            raise ValueError(f"vision_feature_select_strategy: expected 'default', got {strategy!r}")
        return layer

    def num_views(self, call: dict) -> list[int]:
        self.feature_layer(call)
        return [1] * len(call[self.pixels["image"]])

    def views(self, call: dict, reduction) -> tuple[list[tuple[Views, list[int]]], Tensor]:
        return clip_views(
            reduction,
            self.tower,
            self.base.multi_modal_projector,
            call[self.pixels["image"]],
            self.feature_layer(call),
            self.num_views(call),
        )

    def adopt(self, output) -> EncodedImages | None:
        if self.base.language_model.reduction.fitted.reduces_views:
            return None
        images = pooled(output)
        sizes = [len(image) for image in images]
        return EncodedImages(
            pooler_output=images, num_views=[1] * len(sizes), num_kept=sizes, finite=all_finite(images)
        )
