"""The attention rows that are needed, computed beside the fast path; an N x N map is never made.

The layer's own norm and projection *modules* are called, never their weights: adapters, quantised and offloaded weights
live behind the call.
"""

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


def attention_row(query: Tensor, key: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) of one query per row, in fp32.

    Args:
        query: [B, H, 1, d].
        key: [B, Hk, L, d]; H is a multiple of Hk (grouped queries).
        allowed: bool [B, L], the keys that the query may see; None allows all.

    Returns:
        [B, H, L] fp32.
    """
    num_keys = key.shape[1]
    grouped = query.float().unflatten(1, (num_keys, -1)).squeeze(3)  # B Hk G d
    # Keys first: of a batch of views, q @ k^T is a thin product that runs at a tenth of the speed on a CPU.
    logits = (key.float() @ grouped.transpose(2, 3)).transpose(2, 3) * scale  # B Hk G L
    if allowed is not None:
        logits = logits.masked_fill(~allowed[:, None, None], -torch.inf)
    return logits.softmax(dim=-1).flatten(1, 2)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: states [B, H, L, d]; cos and sin [B, L, d]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)


def cls_row(layer: nn.Module, hidden: Tensor) -> Tensor:
    """How much [CLS] attends to each patch in one CLIP layer: S = mean_h softmax(Q_CLS K_V^T / sqrt(d)).

    The softmax runs over all keys, [CLS] included; its own column is then left out, without renormalising.

    Args:
        layer: a CLIP encoder layer.
        hidden: its input [V, 1 + N, C].

    Returns:
        [V, N] fp32.
    """
    norm, to_query, to_key, head_dim, scale = projections(layer)
    hidden = norm(hidden)
    query = split_heads(to_query(hidden[:, :1]), head_dim)
    key = split_heads(to_key(hidden), head_dim)
    return attention_row(query, key, scale)[:, :, 1:].mean(dim=1)


def prompt_rows(
    layer: nn.Module, hidden: Tensor, query: Tensor, rotary: tuple[Tensor, Tensor] | None, allowed: Tensor | None
) -> Tensor:
    """How much one token of the prompt attends to every token, in one decoder layer.

    Args:
        layer: the decoder layer whose norm, q and k are used.
        hidden: its input [B, L, D].
        query: long [B], the column of the token that asks.
        rotary: (cos, sin), each [B or 1, L, d], applied to q and k; None leaves positions out.
        allowed: bool [B, L], the keys that the query may see (causality and padding); None allows all.

    Returns:
        [B, H, L] fp32.
    """
    norm, to_query, to_key, head_dim, scale = projections(layer)
    hidden = norm(hidden)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    queries = split_heads(to_query(hidden[rows, query].unsqueeze(1)), head_dim)  # B H 1 d
    keys = split_heads(to_key(hidden), head_dim)  # B Hk L d
    if rotary is not None:
        cos, sin = (part.to(hidden.device).expand(hidden.shape[0], -1, -1) for part in rotary)
        queries = rotate(queries, cos[rows, query].unsqueeze(1), sin[rows, query].unsqueeze(1))
        keys = rotate(keys, cos, sin)
    return attention_row(queries, keys, scale, allowed)
