"""Video-LLaVA's video tower: CLIP whose blocks first attend over time."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vscan.compat import CLIPEncoderLayer, clip_blocks
from vscan.models.towers import run_tower
from vscan.select.attention import device_of

from .clip_encoder import CLIPVisionTower


class TemporalLayer(CLIPEncoderLayer):
    """transformers' CLIPEncoderLayer.

    Modifications:
    - before it does what it did, every frame gets its place in time added, [CLS] included, and each token attends to
      the tokens at its own place in all frames of the clip.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        self.temporal_attn = type(self.self_attn)(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def over_time(self, hidden: Tensor) -> Tensor:
        """What comes before the attention in space: [frames of all clips, N, C] -> the same shape."""
        hidden = hidden.to(device_of(self))  # its parts are called, not itself, which would see to that
        num_frames = self.temporal_embedding.shape[1]
        clips = hidden.unflatten(0, (-1, num_frames)) + self.temporal_embedding.unsqueeze(2)  # clips T N C
        places = clips.transpose(1, 2)
        mixed, _ = self.temporal_attn(self.temporal_layer_norm1(places.flatten(0, 1)), None)  # clips*N T C
        return (places + mixed.view_as(places)).transpose(1, 2).flatten(0, 1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, is_mixed: bool = False, **kwargs):
        """Run the block; `is_mixed` says that `over_time` has run."""
        hidden_states = hidden_states if is_mixed else self.over_time(hidden_states)
        return super().forward(hidden_states, attention_mask, **kwargs)


class TemporalCLIP(CLIPVisionModel):
    """transformers' CLIPVisionModel.

    Modifications:
    - its blocks are `TemporalLayer`, if the config's `add_time_attn` says so.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__(config)
        if config.add_time_attn:
            blocks = clip_blocks(self)
            for index in range(len(blocks)):
                blocks[index] = TemporalLayer(config)
            self.post_init()


class VideoTower(CLIPVisionTower):
    """The tower as Video-LLaVA reads it: hidden states of one layer, [CLS] among them."""

    @property
    def num_frames(self) -> int | None:
        """Frames that a clip must have; None where any number will do."""
        config = self.vision_tower.config
        return config.num_frames if config.add_time_attn else None

    def forward(self, images: Tensor) -> Tensor:
        """The frames of clips [V, 3, H, W] -> [V, 1 + N, C]."""
        return run_tower(self.vision_tower, images, self.select_layer).hidden
