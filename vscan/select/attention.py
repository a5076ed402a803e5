"""The attention rows that are needed, computed beside the fast path; an N x N map is never made.

The layer's own norm and projection *modules* are called, never their weights: adapters, quantised and offloaded weights
live behind the call.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..compat import execution_device, projections


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: what accelerate says, where it has spread the model, else where its weights are."""
    for part in module.modules():
        device = execution_device(part)
        if device is not None:
            return device
    return next(module.parameters()).device


def split_heads(states: Tensor, head_dim: int) -> Tensor:
    """[B, L, H * d] -> [B, H, L, d]."""
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attention_rows(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) of a few queries, in fp32.

    Args:
        query: [B, H, Q, d].
        key: [B, Hk, L, d]; H is a multiple of Hk (grouped queries).
        allowed: bool [B, Q, L], the keys that each query may see; None allows all.

    Returns:
        [B, H, Q, L] fp32.
    """
    num_queries = query.shape[2]
    grouped = query.float().unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # B Hk G*Q d
    # Keys first: of a batch of views, q @ k^T is a thin product that runs at a tenth of the speed on a CPU.
    logits = (key.float() @ grouped.transpose(2, 3)).transpose(2, 3) * scale  # B Hk G*Q L
    logits = logits.unflatten(2, (-1, num_queries)).flatten(1, 2)
    if allowed is not None:
        logits = logits.masked_fill(~allowed.unsqueeze(1), -torch.inf)
    return logits.softmax(dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: states [B, H, L, d]; cos and sin [B, L, d]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


def attends_over_time(layer: nn.Module) -> bool:
    """Whether a block lets the frames of a clip attend to each other, place by place, before each attends to itself."""
    return hasattr(layer, "over_time")


def over_time(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What the attention within frames gets of a block's input [V, 1 + N, C]; in most towers that is the input."""
    return layer.over_time(hidden) if attends_over_time(layer) else hidden


def cls_row(layer: nn.Module, hidden: Tensor) -> Tensor:
    """How much [CLS] attends to each patch in one CLIP layer: S = mean_h softmax(Q_CLS K_V^T / sqrt(d)).

    The softmax runs over all keys, [CLS] included; its own column is then left out, without renormalising.

    Args:
        layer: a CLIP encoder layer.
        hidden: what its attention within views gets, [V, 1 + N, C].

    Returns:
        [V, N] fp32.
    """
    norm, to_query, to_key, head_dim, scale = projections(layer)
    hidden = norm(hidden)
    query = split_heads(to_query(hidden[:, :1]), head_dim)
    key = split_heads(to_key(hidden), head_dim)
    return attention_rows(query, key, scale)[:, :, 0, 1:].mean(dim=1)


def queries_and_keys(
    layer: nn.Module, hidden: Tensor, columns: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Queries of some columns and keys of all, as a decoder layer makes them of its input.

    Args:
        layer: the decoder layer whose norm, q and k are used.
        hidden: its input [B, L, D].
        columns: long [B, Q].
        rotary: (cos, sin), each [B or 1, L, d], applied to q and k; None leaves positions out.

    Returns:
        [B, H, Q, d] and [B, Hk, L, d].
    """
    norm, to_query, to_key, head_dim, _ = projections(layer)
    hidden = norm(hidden)
    items = torch.arange(hidden.shape[0], device=hidden.device).unsqueeze(1)
    queries = split_heads(to_query(hidden[items, columns]), head_dim)
    keys = split_heads(to_key(hidden), head_dim)
    if rotary is not None:
        cos, sin = (part.to(hidden.device).expand(hidden.shape[0], -1, -1) for part in rotary)
        queries = rotate(queries, cos[items, columns], sin[items, columns])
        keys = rotate(keys, cos, sin)
    return queries, keys


def prompt_rows(
    layer: nn.Module,
    hidden: Tensor,
    columns: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    allowed: Tensor | None,
    queries_keys: Callable = queries_and_keys,
) -> Tensor:
    """How much some tokens of a prompt attend to every token, in one decoder layer.

    Args:
        layer, hidden, columns, rotary: as `queries_and_keys` takes them.
        allowed: bool [B, Q, L], the keys that each query may see (causality and padding); None allows all.
        queries_keys: what stands in for `queries_and_keys` in a model of another kind.

    Returns:
        [B, H, Q, L] fp32.
    """
    queries, keys = queries_keys(layer, hidden, columns, rotary)
    return attention_rows(queries, keys, projections(layer).scale, allowed)
