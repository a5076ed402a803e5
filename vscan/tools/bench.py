"""What `vscan.profile` times: models of real size with random weights, the rows of its table, what each row does.

What is here is LLaVA's; `vscan.tools.bench_qwen` says what differs on Qwen2.5-VL.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, DynamicCache, LlamaConfig, LlavaConfig

from ..api import apply_config
from ..compat import CACHE, causal_mask, clip_blocks, init_empty_weights, projections, rotary_of
from ..config import Budget, ReductionConfig, count
from ..methods import make_method
from ..methods.base import Layout, Method, Views
from ..models.family import reduce_views
from ..models.towers import clip_views, grid_of, run_tower
from ..plan import scheduled
from ..prompt import VisualPrompt
from ..select.attention import cls_row

# Views of a prompt, decoder layers, and what else differs from Llama-7B. A prompt of LLaVA-NeXT is five views of 576
# tokens in the shell of LLaVA-1.5: newlines and unpadding change a few tokens of it, and no time.
_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
MODELS = {
    "llava-1.5-7b": (1, 32, {}),
    "llava-1.5-13b": (1, 40, _13B),
    "llava-next-7b": (5, 32, {}),
    "llava-next-13b": (5, 40, _13B),
}
BEFORE, AFTER = 35, 28  # text tokens around the visual ones: 63 as in the paper's LLaVA-1.5 rows
QUESTION = "What color is the dog in the image?"  # of methods that read one
TIMES = ("vision tower", "selection+merging", "prefill", "decode per token")


def build(name: str, num_layers: int, dtype: torch.dtype, device: torch.device, attn_implementation: str | None):
    """A LLaVA of real size with random weights."""
    sizes = {"num_hidden_layers": num_layers, **MODELS[name][2]}
    text = LlamaConfig(vocab_size=32064, max_position_embeddings=4096, pad_token_id=32001, **sizes)
    config = LlavaConfig(text_config=text, image_token_index=32000)  # its own default tower is CLIP-L at 336 pixels
    return random_model(config, dtype, device, attn_implementation)


def random_model(config, dtype: torch.dtype, device: torch.device, attn_implementation: str | None):
    """A stock model with random weights, in eval mode."""
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation, dtype=dtype)
    # One block of noise over and over: drawing billions of numbers takes minutes, and no time depends on them.
    noise = torch.randn(1_000_003, device=device).mul_(0.02).to(dtype)
    for path, parameter in list(model.named_parameters()):
        value = torch.full(parameter.shape, float(path.endswith("weight")), dtype=dtype, device=device)
        for part in value.view(-1).split(len(noise)) if value.ndim > 1 else ():  # all but norms and biases
            part.copy_(noise[: len(part)])
        owner, _, last = path.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
    return model.to(device).eval()


@dataclass
class Row:
    """One line of the table: what runs, and what was measured of it, over the whole batch.

    Args:
        kind: "dense", "reduced" or "floor".
        average: visual tokens of a view, averaged over the decoder's layers; on Qwen2.5-VL a share of all.
        visual: visual tokens of a view in each of these layers; on Qwen2.5-VL of all images of a prompt.
        config: the reduction in force; None unless `kind` is "reduced".
        kept: bool [B, L], placeholders that hold a token, as `Bench.embed` left them; None where all do.
        seconds: {column: a number per round}.
        lengths: columns that each layer's cache holds after the prompt.
        peak: bytes beyond weights and pixels, at most, on the way from pixels to cache.
        kv, flops, counted: bytes of the cache; FLOPs of the prefill by the paper's formula and as counted.
    """

    kind: str
    average: Budget
    visual: list[int]
    config: ReductionConfig | None = None
    kept: Tensor | None = None
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    lengths: list[int] = field(default_factory=list)
    peak: int = 0
    kv: int = 0
    flops: float = 0
    counted: int = 0


def plan(method: str, averages: list[int], fields: dict, num_layers: int, num_tokens: int) -> list[Row]:
    """Dense; and for every average, the reduced model and its floor.

    Raises:
        ValueError: for an average that cannot be met, or a hyper-parameter that is none.
    """
    made = make_method(method, fields)
    rows = [Row("dense", num_tokens, [num_tokens] * num_layers)]
    for average in averages:
        config = scheduled(ReductionConfig(method, average=average, fields=fields), made, num_layers, num_tokens)
        entering = config.visual_tokens
        if entering is not None and entering >= num_tokens:
            raise ValueError(
                f"--average: expected fewer than the {num_tokens} tokens of a view to enter the decoder, "
                f"got {average}, with which {entering} enter"
            )
        visual = tokens_per_layer(made, config, num_layers, count(num_tokens, entering))
        rows += [Row("reduced", average, visual, config), Row("floor", average, visual)]
    return rows


def tokens_per_layer(method: Method, config: ReductionConfig, num_layers: int, entering: int) -> list[int]:
    """Visual tokens that each decoder layer sees where so many enter; what a method adds to a budget is counted."""
    visual = [entering] * num_layers
    for layer, asked in config.layers:
        num = count(visual[layer], asked)
        left = num if num == visual[layer] else method.leaves(num, visual[layer])
        visual[layer:] = [left] * (num_layers - layer)
    return visual


def letters(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
    """A tokenizer for weights that know no words: every word is the token numbered by its letters."""
    return {"input_ids": [len(word) for word in text.split()]}


def read(reduction, num_views: int) -> list | None:
    """What a method reads beside every view; None where it reads nothing, or there is no reduction."""
    return reduction and reduction.read and reduction.read([QUESTION]) * num_views


class Bench:
    """A LLaVA (stock, or in the original format), a batch of equal prompts, and what each row does with them."""

    stage = "selection+merging"  # what the vision stage adds to the tower
    num_text = BEFORE + AFTER
    vision_depth = None  # blocks of the whole tower, where only some of them are here

    def __init__(self, model: nn.Module, num_views: int, batch_size: int):
        self.model, self.num_views, self.batch_size = model, num_views, batch_size
        inner = model.model
        if hasattr(inner, "mm_projector"):
            self.decoder, self.project = inner, inner.mm_projector
            self.clip, self.feature_layer = inner.vision_tower.vision_tower, inner.vision_tower.select_layer
        else:
            self.decoder, self.project = inner.language_model, inner.multi_modal_projector
            self.clip, self.feature_layer = inner.vision_tower, inner.config.vision_feature_layer
        self.config, self.device = self.decoder.config, self.decoder.embed_tokens.weight.device
        self.grid, side = grid_of(self.clip), self.clip.config.image_size
        self.num_tokens = self.grid[0] * self.grid[1]
        self.pixels = torch.randn(batch_size * num_views, 3, side, side, device=self.device).to(model.dtype)
        ids = torch.ones(batch_size, BEFORE + AFTER, dtype=torch.long, device=self.device)
        self.text = self.decoder.embed_tokens(ids).detach()

    def __str__(self) -> str:
        return f"{self.num_views} x {self.num_tokens} visual and {self.num_text} text tokens"

    @contextmanager
    def reduced(self, row: Row):
        """The row's reduction in force, if it has one."""
        reduction = row.config and apply_config(self.model, row.config, letters)
        try:
            yield reduction
        finally:
            if reduction is not None:
                reduction.remove()

    def tower(self) -> Tensor:
        """What no reduction saves: the tower as far as it is read, and the projector. [V, N, D]"""
        return self.project(run_tower(self.clip, self.pixels, self.feature_layer).hidden[:, 1:])

    def encode(self, reduction) -> tuple[Tensor, Tensor]:
        """The views as the reduction leaves them: [V, N, D], zeros where a token is dropped; and which are left."""
        layouts = None
        if reduction.method.needs.group == "image" and self.num_views > 1:
            side = isqrt(self.num_views - 1)
            seen = torch.ones(self.num_views, self.num_tokens, dtype=torch.bool)
            layouts = [Layout((side, side), seen)] * self.batch_size
        pictures, texts = [self.num_views] * self.batch_size, read(reduction, len(self.pixels))
        given = (reduction, self.clip, self.project, self.pixels, self.feature_layer, pictures, layouts, texts)
        batches, _ = clip_views(*given)
        tokens, left, _ = zip(*(reduce_views(reduction.fitted, *batch) for batch in batches), strict=True)
        return torch.cat(tokens), torch.cat(left)

    def selection(self, reduction) -> Callable[[], Tensor | None]:
        """What a reduction does beside tower and projector: [CLS] rows, keys, selection, merging and the layout; of a
        method with blocks of its own, or one budget for several crops, the tower as well."""
        needs, fitted = reduction.method.needs, reduction.fitted
        if not fitted.reduces_views:
            return lambda: None
        if type(reduction.method).block is not Method.block or (needs.group == "image" and self.num_views > 1):
            return lambda: self.encode(reduction)[0]
        blocks = clip_blocks(self.clip)
        states = self.clip(self.pixels, output_hidden_states=True).hidden_states
        hidden = states[self.feature_layer]
        inputs = {layer: states[:-1][layer] for layer in (*needs.rows, *needs.keys)}
        projected, texts = self.project(hidden[:, 1:]), read(reduction, len(hidden))

        def select() -> Tensor:
            keys, queries = {}, {}
            for layer in needs.keys:
                norm, to_query, to_key, _, _ = projections(blocks[layer])
                normed = norm(inputs[layer])
                keys[layer], queries[layer] = to_key(normed), to_query(normed[:, 0])
            views = Views(
                pixels=self.pixels,
                features=hidden[:, 1:],
                rows={layer: cls_row(blocks[layer], inputs[layer]) for layer in needs.rows},
                grid=self.grid,
                project=lambda tokens: projected[:, : tokens.shape[1]],
                cls=hidden[:, 0],
                keys=keys,
                queries=queries,
                num_heads=self.clip.config.num_attention_heads,
                text=texts,
            )
            return reduce_views(fitted, views, [1] * len(hidden))[0]

        return select

    def embed(self, row: Row, reduction) -> Tensor:
        """From pixels to what the decoder is given, [B, L, D]; no dropped token comes before the floor."""
        if reduction is None or not reduction.fitted.reduces_views:
            features = self.tower()
        else:
            features, kept = self.encode(reduction)
            row.kept = nn.functional.pad(kept.reshape(self.batch_size, -1), (BEFORE, AFTER))
        visual = features.reshape(self.batch_size, -1, features.shape[-1])
        if row.kind == "floor":
            visual = visual[:, : self.num_views * row.visual[0]]
        return torch.cat((self.text[:, :BEFORE], visual, self.text[:, BEFORE:]), dim=1)

    def whole(self, row: Row, reduction) -> DynamicCache:
        """From pixels to the cache."""
        return self.prefill(row, self.embed(row, reduction))

    def prefill(self, row: Row, embeds: Tensor) -> DynamicCache:
        """Run the prompts through the decoder."""
        cache = DynamicCache(config=self.config)
        self.run(row, embeds, cache, **self.keywords(row, embeds))
        return cache

    def keywords(self, row: Row, embeds: Tensor) -> dict:
        """What the decoder is told about a prompt beside its embeddings."""
        if row.kind != "reduced":
            return {}
        visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=self.device)
        visual[:, BEFORE:-AFTER] = True
        counts = (1, self.num_tokens, row.visual[0])
        lists = [[self.num_views * count] * self.batch_size for count in counts]
        return {"visual_prompt": VisualPrompt(visual, *lists, [embeds.shape[1]] * self.batch_size, row.kept)}

    def decode(self, row: Row, cache: DynamicCache, num_tokens: int) -> None:
        """Run more tokens, one at a time."""
        for _ in range(num_tokens):
            self.run(row, self.text[:, :1], cache)

    def run(self, row: Row, hidden: Tensor, cache: DynamicCache, **extra) -> None:
        """One pass of the decoder. The floor's: each run of layers on as many columns as it sees when reduced."""
        if row.kind != "floor":
            self.decoder(inputs_embeds=hidden, use_cache=True, **{CACHE: cache}, **extra)
            return
        for index, layer in enumerate(self.decoder.layers):
            if index == 0 or row.visual[index] < row.visual[index - 1]:
                past = cache.get_seq_length(index)
                if past == 0:
                    hidden = hidden[:, : self.num_views * row.visual[index] + self.num_text]
                positions = torch.arange(past, past + hidden.shape[1], device=self.device).unsqueeze(0)
                mask = causal_mask(self.config, hidden, None, cache, index, may_skip=True)
                options = {"attention_mask": mask, "position_embeddings": rotary_of(self.decoder, hidden, positions)}
            hidden = layer(hidden, use_cache=True, **{CACHE: cache}, **options)
        self.decoder.norm(hidden)
