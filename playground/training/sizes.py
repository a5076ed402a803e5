"""The embedded models' layers and widths."""

from dataclasses import dataclass

from transformers import CLIPVisionConfig, LlamaConfig

from ..scenes.picture import PATCH
from ..scenes.world import GRID

WIDTH = 128
FEATURE_LAYER = -2  # of the tower's hidden states, as LLaVA reads them
VOCABULARY = 480


@dataclass(frozen=True)
class Depth:
    """A decoder's layers.

    Args:
        num_layers: how many.
        intermediate_size: of their feed-forward part.
        named_after: after so many of them the states at a thing's name are to know the thing.
    """

    num_layers: int
    intermediate_size: int
    named_after: int


TINY = Depth(8, 3 * WIDTH, 5)
DEEP = Depth(28, 3 * WIDTH // 2, 14)  # half the feed-forward part keeps the checkpoint under 12 MB


def vision_config() -> CLIPVisionConfig:
    """Six blocks, 24 x 24 patches of 4 pixels and [CLS]."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )


def text_config(depth: Depth = TINY) -> LlamaConfig:
    """A Llama's."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=depth.intermediate_size,
        num_hidden_layers=depth.num_layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
        # To compare a name with patches hundreds of positions away takes pairs that turn slowly. Of a head's sixteen
        # nine turn by less than a radian over 300 positions; with the usual base of 1e4 six do.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.06,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
