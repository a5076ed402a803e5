"""What a schedule of visual tokens costs: its FLOPs, its KV cache, and the average that papers call its budget.

A schedule is one int per decoder layer, the visual tokens that layer sees. Everything is arithmetic on plain ints:
no torch, no model.
"""

from collections.abc import Sequence

from .config import check_layers, count


def _check_count(value: float, name: str, least: int = 0, kind: type = int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | kind) or value < least:
        expected = "an int" if kind is int else "a number"
        raise ValueError(f"{name}: expected {expected} of at least {least}, got {value!r}")


def _check_schedule(lengths: Sequence[float], name: str, most: int | None = None, kind: type = int) -> None:
    if not lengths:
        raise ValueError(f"{name}: expected one count for each layer, got an empty sequence")
    for layer, length in enumerate(lengths):
        _check_count(length, f"{name}: layer {layer}", kind=kind)
        if most is not None and length > most:
            raise ValueError(f"{name}: layer {layer}: expected at most the {most} of the dense run, got {length}")


def tokens_per_layer(num_layers: int, visual_tokens: int, layers: Sequence[tuple[int, int]]) -> list[int]:
    """The visual tokens that each decoder layer sees, for one view.

    Args:
        num_layers: layers of the decoder.
        visual_tokens: tokens that enter the decoder.
        layers: (layer, tokens) pairs, as in `ReductionConfig`: the input of that layer (0-based) is pruned, so the
            layer itself is the first to see fewer. A stage never grows: where fewer tokens arrive, all of them stay.

    Returns:
        `num_layers` ints, none larger than the one before.

    Raises:
        ValueError: for a count that is none, and for layers that do not ascend or that the decoder does not have.
    """
    _check_count(num_layers, "num_layers", least=1)
    _check_count(visual_tokens, "visual_tokens")
    schedule = [visual_tokens] * num_layers
    for layer, budget in check_layers(layers):
        if layer >= num_layers:
            raise ValueError(f"layers: expected a decoder layer of 0 to {num_layers - 1}, got {layer}")
        schedule[layer:] = [count(schedule[layer], budget)] * (num_layers - layer)
    return schedule


def average_tokens(tokens_per_layer: Sequence[int]) -> float:
    """Visual tokens averaged over the decoder's layers, the number that tables call a budget.

    Raises:
        ValueError: for an empty schedule or a negative count.
    """
    _check_schedule(tokens_per_layer, "tokens_per_layer")
    return sum(tokens_per_layer) / len(tokens_per_layer)


def retention(tokens_per_layer: Sequence[int], dense_tokens: int) -> float:
    """The average as a share, in [0, 1], of the `dense_tokens` that every layer sees without reduction.

    Raises:
        ValueError: for an empty schedule, a count that is none, or a layer that sees more than `dense_tokens`.
    """
    _check_count(dense_tokens, "dense_tokens", least=1)
    _check_schedule(tokens_per_layer, "tokens_per_layer", most=dense_tokens)
    return average_tokens(tokens_per_layer) / dense_tokens


def vscan_schedule(average: int, num_layers: int, layer: int | None = None) -> tuple[int, tuple[tuple[int, int], ...]]:
    """VScan's budgets for an average: R1 = 1.5 x average enter, R2 = R1 / 3 stay from layer num_layers / 2 on.

    Another layer than the middle one gets `layer_schedule`.

    Half of the layers see 1.5 x and half see 0.5 x the average, so both numbers must be even. An odd `num_layers`
    is refused: with either middle layer the mean misses the average by 1 / (2 num_layers) of it, and a comparison at
    equal averages would not be one. The view itself needs at least R1 tokens for the average to be met.

    Args:
        average: visual tokens per view, averaged over the decoder's layers.
        num_layers: layers of the decoder.
        layer: the one before which tokens are pruned; None is the middle.

    Returns:
        (visual_tokens, ((layer, tokens),)), what `ReductionConfig` calls `visual_tokens` and `layers`: an average of
        192 in 32 layers is (288, ((16, 96),)).

    Raises:
        ValueError: where the average cannot be met with whole tokens and whole layers.
    """
    _check_count(average, "average", least=1)
    _check_count(num_layers, "num_layers", least=1)
    if layer is not None and layer != num_layers // 2:
        early, late = layer_schedule(average, num_layers, layer)
        return early, ((layer, late),)
    if average % 2:
        raise ValueError(f"average: expected an even count, so that 1.5 x and 0.5 x are whole tokens, got {average}")
    if num_layers % 2:
        raise ValueError(f"num_layers: expected an even count, so that the average is met exactly, got {num_layers}")
    return 3 * average // 2, ((num_layers // 2, average // 2),)


def vscan_shares(
    average: float, num_layers: int, layer: int | None = None
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """`vscan_schedule` for images of any size: budgets are shares of the tokens that arrive, rounded down where used.

    Args:
        average: visual tokens averaged over the decoder's layers, as a share of those of the dense run; below 2/3.
        num_layers: layers of the decoder, an even number where `layer` is None.
        layer: the one before which tokens are pruned to a third; None is the middle.

    Returns:
        (visual_tokens, ((layer, share),)), what `ReductionConfig` calls `visual_tokens` and `layers`: an average of
        0.222 in 28 layers is (0.333, ((14, 1/3),)).

    Raises:
        ValueError: where the average cannot be met.
    """
    if isinstance(average, bool) or not isinstance(average, float) or not 0 < 1.5 * average < 1:
        raise ValueError(f"average: expected a share (float) above 0 and below 2/3, got {average!r}")
    _check_count(num_layers, "num_layers", least=1)
    if layer is not None and layer != num_layers // 2:
        return 3 * average * num_layers / (num_layers + 2 * layer), ((layer, 1 / 3),)
    if num_layers % 2:
        raise ValueError(f"num_layers: expected an even count, so that the average is met exactly, got {num_layers}")
    return 1.5 * average, ((num_layers // 2, 1 / 3),)


def layer_schedule(average: int, num_layers: int, layer: int) -> tuple[int, int]:
    """R1 tokens in the layers before `layer` and R2 = R1 / 3 from it on, as near to an average as whole tokens allow.

    k R1 + (L - k) R2 = L A gives R2 = L A / (L + 2 k). R2 is rounded down or up, and R1 follows from the equation, so
    the average misses A by at most k / 2L < 1/2. Of two equally good ones the ratio nearer to 3 is taken.

    Args:
        average: A.
        num_layers: L.
        layer: k, 1 to L - 1.

    Returns:
        (R1, R2), R1 >= R2 >= 1.

    Raises:
        ValueError: for a layer that is none or the first.
    """
    if not 1 <= layer < num_layers:
        raise ValueError(f"layer: expected one of 1 to {num_layers - 1}, got {layer}")
    total = num_layers * average
    weight = num_layers + 2 * layer
    options = []
    for late in (max(1, total // weight), -(-total // weight)):  # down, but one token is the least, and up
        early = round((total - (num_layers - layer) * late) / layer)
        miss = abs(layer * early + (num_layers - layer) * late - total)
        options.append((miss, abs(early - 3 * late), early, late))
    return min(options)[2:]


def decoder_flops(tokens_per_layer: Sequence[float], hidden_size: int, intermediate_size: int) -> float:
    """FLOPs of the decoder's prefill over visual tokens: sum over layers of 4 n d^2 + 2 n^2 d + 3 n d m (VScan, B.2).

    n is the layer's visual tokens, d the hidden size, m the intermediate size; the terms are the four projections,
    the attention map with its product, and the gated MLP. As in the paper a multiply-add counts once, text is left
    out, and keys and values are as wide as queries, which overstates models with fewer KV heads. The paper's rows for
    reduced models are this sum at the average in every layer; the two stages themselves cost 0.1 to 0.9 % more.

    Args:
        tokens_per_layer: n of every layer; an average need not be whole.
        hidden_size, intermediate_size: d and m.

    Returns:
        FLOPs, exact for whole tokens; 1e12 of them are the paper's "T".

    Raises:
        ValueError: for an empty schedule or a count that is none.
    """
    _check_schedule(tokens_per_layer, "tokens_per_layer", kind=float)
    _check_count(hidden_size, "hidden_size", least=1)
    _check_count(intermediate_size, "intermediate_size", least=1)
    d, m = hidden_size, intermediate_size
    return sum(4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m for n in tokens_per_layer)


def kv_cache_bytes(lengths: Sequence[int], num_kv_heads: int, head_dim: int, bytes_per_value: int) -> int:
    """Bytes of the keys and values of one prompt: 2 x sum of lengths x heads x head size x bytes.

    Args:
        lengths: cache length of every layer, in tokens, text and visual.
        num_kv_heads: heads of the keys, which may be fewer than those of the queries.
        head_dim: values per head.
        bytes_per_value: 2 for fp16 and bf16.

    Raises:
        ValueError: for no lengths at all or a count that is none.
    """
    _check_schedule(lengths, "lengths")
    _check_count(num_kv_heads, "num_kv_heads", least=1)
    _check_count(head_dim, "head_dim", least=1)
    _check_count(bytes_per_value, "bytes_per_value", least=1)
    return 2 * sum(lengths) * num_kv_heads * head_dim * bytes_per_value


def kv_share(visual_tokens_per_layer: Sequence[int], dense_visual: int, text_tokens: int) -> float:
    """The KV cache as a share, in [0, 1], of the dense run's: (average + text) / (dense + text) (VScan, Table 7).

    Args:
        visual_tokens_per_layer: visual tokens in the cache of every layer.
        dense_visual: visual tokens in every layer without reduction.
        text_tokens: the other tokens of the prompt, which are never dropped. The paper prints no count: 63 gives its
            LLaVA-1.5 rows, 65 to 67 its LLaVA-NeXT rows.

    Raises:
        ValueError: for an empty schedule, a count that is none, or a layer that sees more than `dense_visual`.
    """
    _check_count(dense_visual, "dense_visual", least=1)
    _check_count(text_tokens, "text_tokens")
    _check_schedule(visual_tokens_per_layer, "visual_tokens_per_layer", most=dense_visual)
    return (average_tokens(visual_tokens_per_layer) + text_tokens) / (dense_visual + text_tokens)
