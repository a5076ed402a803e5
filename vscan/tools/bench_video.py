"""What `vscan.profile` times on Video-LLaVA: a clip of 8 frames in each prompt, 257 tokens a frame.

With random weights it is the stock model, whose tower does not attend over time; a checkpoint in the original format is
timed with its own. A clip is counted as a whole, its [CLS] tokens included.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, VideoLlavaConfig

from ..compat import clip_blocks
from ..config import ReductionConfig, count
from ..methods import make_method
from ..methods.base import Method, Views
from ..models.frames import is_cls, reduced_clips
from ..models.towers import clip_views, grid_of, run_tower
from ..plan import Fitted, Plan, scheduled
from ..prompt import VisualPrompt
from ..select.attention import cls_row, over_time
from .bench import AFTER, BEFORE, Bench, Row, random_model

MODELS = {"video-llava-7b": 32}  # decoder layers
AVERAGES = [128, 64, 32]
FRAMES, PATCHES = 8, 256  # of a clip; of a frame


def build(num_layers: int, dtype: torch.dtype, device: torch.device, attn_implementation: str | None):
    """A stock Video-LLaVA of real size with random weights."""
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, pad_token_id=32002, num_hidden_layers=num_layers)
    config = VideoLlavaConfig(text_config=text)  # its own default towers are CLIP-L at 224 pixels
    config.vision_config.hidden_act = "gelu"
    return random_model(config, dtype, device, attn_implementation)


def plan(method: str, averages: list[int], fields: dict, num_layers: int, num_tokens: int = PATCHES) -> list[Row]:
    """Dense; and for every average, the reduced model and its floor. Averages are of a frame without its [CLS].

    Raises:
        ValueError: for an average that cannot be met, or a hyper-parameter that is none.
    """
    made, dense = make_method(method, fields), FRAMES * (1 + num_tokens)
    rows = [Row("dense", num_tokens, [dense] * num_layers)]
    for average in averages:
        config = scheduled(ReductionConfig(method, average=average, fields=fields), made, num_layers, num_tokens)
        if config.visual_tokens is not None and config.visual_tokens >= num_tokens:
            raise ValueError(
                f"--average: expected fewer than the {num_tokens} tokens of a frame to enter the decoder, "
                f"got {average}, with which {config.visual_tokens} enter"
            )
        visual = tokens_per_layer(made, config, num_layers, num_tokens)
        rows += [Row("reduced", average, visual, config), Row("floor", average, visual)]
    return rows


def tokens_per_layer(method: Method, config: ReductionConfig, num_layers: int, num_tokens: int) -> list[int]:
    """Visual tokens of a clip in each decoder layer."""
    entering, dense = FRAMES * (1 + count(num_tokens, config.visual_tokens)), FRAMES * (1 + num_tokens)
    lists = ([FRAMES], [dense], [entering], [dense])
    prompt = VisualPrompt(torch.empty(1, dense), *lists, kept=torch.empty(0), num_apart=[FRAMES])
    stages = Plan.of(Fitted(method, None, config.layers, num_tokens, num_layers, True, True, None), prompt).of_layers
    return [stage.num_visual[0] for stage in stages]


class VideoBench(Bench):
    """A Video-LLaVA (stock, or in the original format), a batch of equal prompts with a clip each, and what each row
    does with them."""

    def __init__(self, model: nn.Module, batch_size: int):
        self.model, self.num_views, self.batch_size = model, 1, batch_size
        inner = model.model
        if hasattr(inner, "mm_projector"):
            self.decoder, self.project = inner, inner.mm_projector
            self.clip, self.feature_layer = inner.video_tower.vision_tower, inner.video_tower.select_layer
        else:
            self.decoder, self.project = inner.language_model, inner.multi_modal_projector
            self.clip, self.feature_layer = inner.video_tower, inner.config.vision_feature_layer
        self.config, self.device = self.decoder.config, self.decoder.embed_tokens.weight.device
        self.grid, side = grid_of(self.clip), self.clip.config.image_size
        self.num_tokens = FRAMES * (1 + self.grid[0] * self.grid[1])
        self.pixels = torch.randn(batch_size * FRAMES, 3, side, side, device=self.device).to(model.dtype)
        ids = torch.ones(batch_size, BEFORE + AFTER, dtype=torch.long, device=self.device)
        self.text = self.decoder.embed_tokens(ids).detach()

    def __str__(self) -> str:
        return f"{FRAMES} x {self.num_tokens // FRAMES} visual and {self.num_text} text tokens"

    def tower(self) -> Tensor:
        """What no reduction saves: the tower as far as it is read, and the projector. [V, 1 + N, D]"""
        return self.project(run_tower(self.clip, self.pixels, self.feature_layer).hidden)

    def encode(self, reduction) -> tuple[Tensor, Tensor]:
        """The clips as the reduction leaves them, [B, T * (1 + N), D], and which of their tokens are left."""
        of_clips = [FRAMES] * self.batch_size
        ((views, _),), _ = clip_views(reduction, self.clip, self.project, self.pixels, self.feature_layer, of_clips)
        return self.laid_out(reduction, views)

    def laid_out(self, reduction, views: Views) -> tuple[Tensor, Tensor]:
        """What the method makes of the frames."""
        clips = reduced_clips(reduction.fitted, views, FRAMES)
        return torch.stack(clips.encoded), torch.stack(clips.kept)

    def selection(self, reduction) -> Callable[[], Tensor | None]:
        """What a reduction does beside tower and projector; the tower as well where more is read than frames' rows."""
        needs, fitted = reduction.method.needs, reduction.fitted
        if not fitted.reduces_views:
            return lambda: None
        if type(reduction.method).block is not Method.block or needs.keys or fitted.group == "image":
            return lambda: self.encode(reduction)[0]
        blocks = clip_blocks(self.clip)
        states = self.clip(self.pixels, output_hidden_states=True).hidden_states
        hidden = states[self.feature_layer]
        inputs = {layer: over_time(blocks[layer], states[:-1][layer]) for layer in needs.rows}
        projected = self.project(hidden)

        def select() -> Tensor:
            views = Views(
                pixels=self.pixels,
                features=hidden[:, 1:],
                rows={layer: cls_row(blocks[layer], states) for layer, states in inputs.items()},
                grid=self.grid,
                project=lambda tokens: projected[:, : tokens.shape[1]],
                cls=hidden[:, 0],
            )
            return self.laid_out(reduction, views)[0]

        return select

    def keywords(self, row: Row, embeds: Tensor) -> dict:
        """What the decoder is told about a prompt beside its embeddings."""
        if row.kind != "reduced":
            return {}
        visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=self.device)
        visual[:, BEFORE:-AFTER] = True
        apart = torch.zeros_like(visual)
        apart[:, BEFORE:-AFTER] = is_cls(FRAMES, self.num_tokens // FRAMES, self.device)
        counts = (FRAMES, self.num_tokens, row.visual[0], embeds.shape[1])
        lists = [[count] * self.batch_size for count in counts]
        prompt = VisualPrompt(visual, *lists, row.kept, apart, [FRAMES] * self.batch_size)
        return {"visual_prompt": prompt}
