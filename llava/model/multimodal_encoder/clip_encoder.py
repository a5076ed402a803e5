"""The CLIP tower, stopped at the layer it is read from."""

from torch import Tensor, nn
from transformers import CLIPVisionModel

from vscan.models.towers import run_tower


class CLIPVisionTower(nn.Module):
    """CLIP as LLaVA reads it: hidden states of one layer, without [CLS].

    Args:
        vision_tower: the transformers model.
        select_layer: index into its hidden states (-2: the output of the last block but one).
    """

    def __init__(self, vision_tower: CLIPVisionModel, select_layer: int = -2):
        super().__init__()
        self.vision_tower = vision_tower
        self.select_layer = select_layer

    def forward(self, images: Tensor) -> Tensor:
        """[V, 3, H, W] -> [V, N, C], in raster order."""
        return run_tower(self.vision_tower, images, self.select_layer).hidden[:, 1:]
