"""Qwen2.5-VL whose images are reduced in the vision tower (stage 1) and pruned in the middle of the decoder (stage 2).

    model = Qwen2_5_VLForConditionalGeneration_X.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
    with vscan.reduce(model, visual_tokens=0.167, layers={14: 0.333}):
        model.generate(**inputs)

What the method does is in `vscan`; without a reduction in force these are the transformers classes.
"""

from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vscan.compat import Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLTextModel, build
from vscan.decoder import Decoder
from vscan.models.qwen2_5_vl import ReducedTower
from vscan.prompt import Segment

# Weights as the published checkpoints name them -> as transformers does; newer names stay what they are.
PUBLISHED_NAMES = {
    r"^visual\.": "model.visual.",
    r"^model\.(?!language_model\.|visual\.)": "model.language_model.",
}


class Qwen2_5_VisionTransformerPretrainedModel_X(ReducedTower, Qwen2_5_VisionTransformerPretrainedModel):
    """transformers' vision tower.

    Modifications:
    - `forward` ranks the tokens of every image by the attention that they receive, keeps the best of the whole image
      and of its windows, and merges the others into them (`vscan.models.qwen2_5_vl`), while a reduction is applied.
    """

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **kwargs):
        """Encode images and reduce them; see `vscan.models.qwen2_5_vl.ReducedTower.forward`."""
        return super().forward(hidden_states, grid_thw, **kwargs)


class Qwen2_5_VLModel_X(Decoder, Qwen2_5_VLTextModel):
    """transformers' text model.

    Modifications:
    - `forward` runs the layers on a prompt that gets shorter (`vscan.decoder`), while a reduction is applied; every
      token keeps its M-RoPE position.
    - `layer_prune` keeps the visual tokens that the last prompt token attends to most, positions left out.
    """

    def forward(self, *args, **kwargs):
        """Run the layers segment by segment; see `vscan.decoder.Decoder.forward_x`."""
        return super().forward(*args, **kwargs)

    def layer_prune(self, layer_idx: int, hidden: Tensor, segment: Segment, *args) -> tuple[Tensor, Segment]:
        """Prune before layer `layer_idx`; see `vscan.decoder.Decoder.layer_prune`."""
        return super().layer_prune(layer_idx, hidden, segment, *args)


class Qwen2_5_VLForConditionalGeneration_X(Qwen2_5_VLForConditionalGeneration):
    """transformers' Qwen2.5-VL; it loads the same checkpoints.

    Modifications:
    - its vision tower and its text model are the classes above.
    - `from_pretrained` knows the names that weights have in the published layout, which transformers renames for
      classes of its own only.
    """

    def __init__(self, config):
        super().__init__(config)
        self.model.visual = build(Qwen2_5_VisionTransformerPretrainedModel_X, config.vision_config)
        self.model.language_model = build(Qwen2_5_VLModel_X, config.text_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, key_mapping: dict[str, str] | None = None, **kwargs):
        """transformers' `from_pretrained`; `key_mapping` renames weights, {pattern: replacement}."""
        return super().from_pretrained(*args, key_mapping=key_mapping or PUBLISHED_NAMES, **kwargs)
