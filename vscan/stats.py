"""What a prompt became: tokens kept per stage and where, cache length per layer, FLOPs, average retention."""

from dataclasses import asdict, dataclass

from .cache import Cached, PromptState
from .flops import average_tokens, decoder_flops, retention


@dataclass(frozen=True)
class RowStats:
    """One prompt of a batch.

    Args:
        visual_tokens: visual tokens of the dense prompt.
        stages: [layer, visual tokens from that layer on], the first is what layer 0 sees.
        kept: for each stage the visual tokens that are left, as indices into those of the dense prompt.
        tokens_per_layer: visual tokens in each decoder layer.
        average_tokens: their mean over the layers: what papers call "64 tokens".
        retention: that mean as a share of the dense visual tokens.
        flops: decoder FLOPs of the visual tokens by the paper's formula, with each layer's own count.
        flops_at_average: the same with the average in every layer, which is what the paper prints.
        flops_dense: the same for the dense prompt.
    """

    visual_tokens: int
    stages: list[list[int]]
    kept: list[list[int]]
    tokens_per_layer: list[int]
    average_tokens: float
    retention: float
    flops: float
    flops_at_average: float
    flops_dense: float


@dataclass(frozen=True)
class Stats:
    """The last batch of prompts.

    Args:
        method: its name.
        rows: one entry a prompt.
        cache_lengths: columns that each decoder layer's cache held after the prompt, padding included; zeros where
            there was no cache.
        cache_bytes: what its keys and values took, for one row; of a static cache what was allocated; None where the
            cache keeps them in another form, such as quantized.
        cache_dtype: theirs, such as "bfloat16"; "None" without a cache, or where it keeps another form.
        captured: whether recorded graphs ran it (`capture=True`).
        eager: where they were asked for and did not run all of it, why; else None.
    """

    method: str
    rows: list[RowStats]
    cache_lengths: list[int]
    cache_bytes: int | None
    cache_dtype: str
    captured: bool = False
    eager: str | None = None

    def to_dict(self) -> dict:
        """Plain values, for json."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.rows)} prompt{'s' if len(self.rows) > 1 else ''}"]
        for number, row in enumerate(self.rows):
            stages = ", then ".join(f"{tokens} from layer {layer}" for layer, tokens in row.stages)
            lines.append(f"  prompt {number}: {row.visual_tokens} visual tokens: {stages}")
            lines.append(
                f"    average over the layers {row.average_tokens:.1f} ({row.retention:.1%}); decoder FLOPs "
                f"{row.flops / 1e9:.3g} G of {row.flops_dense / 1e9:.3g} G dense "
                f"({row.flops_at_average / 1e9:.3g} G at the average in every layer, as the paper counts)"
            )
        runs = []
        for layer, length in enumerate(self.cache_lengths):
            if not runs or runs[-1][1] != length:
                runs.append((layer, length))
        cache = ", ".join(f"{length} from layer {layer}" for layer, length in runs)
        size = "in a form whose size cannot be told)"
        if self.cache_bytes is not None:
            size = f"{self.cache_bytes / 2**20:.2f} MiB a row), {self.cache_dtype}"
        lines.append(f"  cache length {cache} ({size}")
        if self.captured or self.eager:
            ran = "  captured" if self.captured else "  not captured"
            lines.append(ran + (f": {self.eager}" if self.eager else ""))
        return "\n".join(lines)


def collect(reduction, state: PromptState) -> Stats:
    """Read the counts of a prompt that has run. Reads the kept indices back from the device."""
    config = reduction.fitted.text_config
    num_layers = config.num_hidden_layers
    size = (config.hidden_size, config.intermediate_size)
    segments = state.by_start
    segment_of, current = [], None
    for layer in range(num_layers):
        current = segments.get(layer, current)
        segment_of.append(current)

    rows = []
    for row, dense in enumerate(state.segments[0].prompt.num_visual):
        per_layer = [segment.num_visual[row] for segment in segment_of]
        average = average_tokens(per_layer)
        rows.append(
            RowStats(
                visual_tokens=dense,
                stages=[[start, segment.num_visual[row]] for start, segment in segments.items()],
                kept=[segment.visual_indices(row) for segment in segments.values()],
                tokens_per_layer=per_layer,
                average_tokens=average,
                retention=retention(per_layer, dense) if dense else 1.0,
                flops=decoder_flops(per_layer, *size),
                flops_at_average=decoder_flops([average] * num_layers, *size),
                flops_dense=decoder_flops([dense] * num_layers, *size),
            )
        )
    cached = state.cached or Cached([0] * num_layers, 0, None)
    return Stats(
        method=reduction.config.method,
        rows=rows,
        cache_lengths=cached.lengths,
        cache_bytes=None if cached.num_bytes is None else cached.num_bytes // len(rows),
        cache_dtype=str(cached.dtype).removeprefix("torch."),
        captured=state.captured,
        eager=state.eager,
    )
