"""Attention *received*: how much the tokens of a segment attend to each of them, without an N x N map.

A vision tower without [CLS] ranks its patches by this (VScan on Qwen2.5-VL). Memory grows linearly: queries come in
chunks, one head at a time, and a chunk of logits stays in the processor's cache. On a GPU `vscan.kernels.received` does
the same in two kernels.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

# Queries at a time on a CPU: their logits stay in its caches, and the products are not so thin as to be slow.
QUERIES = 128
# Logits at a time on other devices, where few and large kernels count.
CHUNK_ELSEWHERE = 2**25


@lru_cache(maxsize=1)
def gpu_version() -> Callable | None:
    """`received_by_kernel`, or None where Triton is not installed."""
    try:
        from ..kernels.received import received_by_kernel
    except ImportError:
        return None
    return received_by_kernel


@torch.no_grad()
def attention_received(query: Tensor, key: Tensor, lengths: list[int], scale: float) -> Tensor:
    """Column means of softmax(q k^T * scale) inside each segment, summed over heads, in fp32.

    S_j = sum_h mean_i softmax_j(q_hi k_hj * scale), i and j in one segment. It ranks tokens and carries no gradient.

    Args:
        query, key: [H, N, d] of any float dtype, with positions applied.
        lengths: tokens of each segment, in order; they add up to N. Segments do not see each other.
        scale: of the logits.

    Returns:
        [N] fp32; a segment's scores add up to H.

    Raises:
        ValueError: if the segments are not those of the tokens.
    """
    if sum(lengths) != query.shape[1]:
        raise ValueError(f"lengths: expected segments of {query.shape[1]} tokens in all, got {sum(lengths)}")
    if query.device.type == "cuda" and query.dtype != torch.float64 and gpu_version() is not None:
        return gpu_version()(query, key, lengths, scale)
    return received_in_chunks(query, key, lengths, scale)


def received_in_chunks(query: Tensor, key: Tensor, lengths: list[int], scale: float) -> Tensor:
    """`attention_received` on any device, with nothing but torch; the arguments and the result are the same."""
    received = torch.zeros(query.shape[1], dtype=torch.float32, device=query.device)
    longest = max(lengths, default=0)
    rows = QUERIES if query.device.type == "cpu" else max(1, CHUNK_ELSEWHERE // max(1, longest))
    # One chunk of logits for all: memory that is new to a process costs more than the sums in it.
    logits = torch.empty(min(rows, longest) * longest, dtype=torch.float32, device=query.device)
    for queries, keys in zip(query, key, strict=True):  # N d
        queries, keys = queries.float() * scale, keys.float()
        for q, k, total in zip(queries.split(lengths), keys.split(lengths), received.split(lengths), strict=True):
            for part in q.split(rows):
                weights = torch.mm(part, k.T, out=logits[: len(part) * len(k)].view(len(part), len(k)))
                total += torch.softmax(weights, dim=-1, out=weights).sum(dim=0) / len(k)
    return received
