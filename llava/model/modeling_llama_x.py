"""Llama whose visual tokens are pruned in the middle (stage 2)."""

from torch import Tensor
from transformers import LlamaModel as TransformersLlamaModel

from vscan.decoder import Decoder
from vscan.prompt import Segment


class LlamaModel(Decoder, TransformersLlamaModel):
    """transformers' LlamaModel.

    Modifications:
    - `forward_x` runs the layers on a prompt that gets shorter (`vscan.decoder`), while a reduction is applied.
    - `layer_prune` keeps the visual tokens that the last prompt token attends to most.
    """

    def forward_x(self, *args, **kwargs):
        """Run the layers segment by segment; arguments and result are those of `vscan.decoder.Decoder.forward_x`."""
        return super().forward_x(*args, **kwargs)

    def layer_prune(self, layer_idx: int, hidden: Tensor, segment: Segment, *args) -> tuple[Tensor, Segment]:
        """Prune before layer `layer_idx`; see `vscan.decoder.Decoder.layer_prune`."""
        return super().layer_prune(layer_idx, hidden, segment, *args)
