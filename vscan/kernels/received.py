"""Attention received on a GPU: two Triton kernels, and nothing in memory that grows with N x N.

Normalised attention needs two passes: a row's log-sum-exp is complete only when all of its keys were seen. The first
kernel holds a block of queries and walks over its segment's keys; the second holds a block of keys and walks over the
queries, so that every sum stays inside a program: no atomics, and the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..select.remembered import remembered


@triton.jit
def _load_rows(states, head, rows, end, stride_head, stride_row, width, WIDTH: tl.constexpr):
    """Some rows of one head [rows, WIDTH]; zeros beyond the segment and beyond the head's width."""
    columns = tl.arange(0, WIDTH)
    places = states + head.to(tl.int64) * stride_head + rows[:, None].to(tl.int64) * stride_row + columns[None, :]
    return tl.load(places, mask=(rows[:, None] < end) & (columns[None, :] < width), other=0.0)


@triton.jit
def _normaliser_kernel(
    query, key, normalisers, blocks, stride_qh, stride_qn, stride_kh, stride_kn, length, width, scale,
    WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log2 sum_j 2^(scale q_i k_j) of every query: a program holds OWN queries and walks over their segment's keys."""
    block, head = tl.program_id(0), tl.program_id(1)
    first, start, end = tl.load(blocks + 3 * block), tl.load(blocks + 3 * block + 1), tl.load(blocks + 3 * block + 2)
    rows = first + tl.arange(0, OWN)
    queries = _load_rows(query, head, rows, end, stride_qh, stride_qn, width, WIDTH)
    largest = tl.full([OWN], float("-inf"), dtype=tl.float32)
    total = tl.zeros([OWN], dtype=tl.float32)
    for other in range(start, end, OTHER):
        columns = other + tl.arange(0, OTHER)
        keys = _load_rows(key, head, columns, end, stride_kh, stride_kn, width, WIDTH)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits = tl.where(columns[None, :] < end, logits, float("-inf"))
        raised = tl.maximum(largest, tl.max(logits, axis=1))
        total = total * tl.exp2(largest - raised) + tl.sum(tl.exp2(logits - raised[:, None]), axis=1)
        largest = raised
    tl.store(normalisers + head.to(tl.int64) * length + rows, largest + tl.log2(total), mask=rows < end)


@triton.jit
def _column_kernel(
    query, key, normalisers, received, blocks, stride_qh, stride_qn, stride_kh, stride_kn, length, width, scale,
    WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """mean_i 2^(scale q_i k_j - normaliser_i): a program holds OWN keys and walks over their segment's queries."""
    block, head = tl.program_id(0), tl.program_id(1)
    first, start, end = tl.load(blocks + 3 * block), tl.load(blocks + 3 * block + 1), tl.load(blocks + 3 * block + 2)
    columns = first + tl.arange(0, OWN)
    keys = _load_rows(key, head, columns, end, stride_kh, stride_kn, width, WIDTH)
    total = tl.zeros([OWN], dtype=tl.float32)
    for other in range(start, end, OTHER):
        rows = other + tl.arange(0, OTHER)
        queries = _load_rows(query, head, rows, end, stride_qh, stride_qn, width, WIDTH)
        # Keys down, queries across: the sum then stays within a warp.
        logits = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale
        places = normalisers + head.to(tl.int64) * length + rows
        # A query beyond the segment attends to nothing: 2^-inf.
        total += tl.sum(tl.exp2(logits - tl.load(places, mask=rows < end, other=float("inf"))[None, :]), axis=1)
    tl.store(received + head.to(tl.int64) * length + columns, total / (end - start), mask=columns < end)


@remembered(maxsize=16)
def blocks_of(lengths: tuple[int, ...], size: int, device: torch.device) -> Tensor:
    """Cut segments into blocks of `size` tokens, the last of a segment shorter.

    Returns:
        int32 [blocks, 3]: the block's first token, its segment's first token, the token behind its segment.
    """
    lengths = torch.tensor(lengths)
    ends, counts = lengths.cumsum(0), (lengths + size - 1) // size
    segment = torch.arange(len(lengths)).repeat_interleave(counts)
    within = torch.arange(len(segment)) - (counts.cumsum(0) - counts)[segment]
    starts = (ends - lengths)[segment]
    return torch.stack((starts + size * within, starts, ends[segment]), dim=1).int().to(device)


def received_by_kernel(query: Tensor, key: Tensor, lengths: list[int], scale: float) -> Tensor:
    """`vscan.select.received.attention_received`, by the two kernels.

    Args:
        query, key: [H, N, d] on a GPU, of one dtype: bfloat16, float16 or float32. Products of float32 are made of
            three TF32 products each, which keeps them nearly exact and on the tensor cores.
        lengths, scale: as there.

    Returns:
        [N] fp32.
    """
    num_heads, length, width = query.shape
    query, key = (states if states.stride(-1) == 1 else states.contiguous() for states in (query, key))
    own, other = (64, 32) if query.dtype == torch.float32 else (128, 64)
    normalisers = torch.empty(num_heads, length, dtype=torch.float32, device=query.device)
    received = torch.empty_like(normalisers)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        blocks = blocks_of(tuple(lengths), own, query.device)
        grid = (len(blocks), num_heads)
        strides = (*query.stride()[:2], *key.stride()[:2])
        numbers = (blocks, *strides, length, width, scale * 1.4426950408889634)  # exp(x) is 2^(x log2 e)
        sizes = {"WIDTH": max(16, triton.next_power_of_2(width)), "OWN": own, "OTHER": other}
        sizes |= {"PRECISION": "tf32x3" if query.dtype == torch.float32 else "tf32", "num_warps": 4}
        _normaliser_kernel[grid](query, key, normalisers, *numbers, **sizes)
        _column_kernel[grid](query, key, normalisers, received, *numbers, **sizes)
    return received.sum(dim=0)
