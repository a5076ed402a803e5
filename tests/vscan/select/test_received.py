"""Attention received, against whole maps: any segments, any chunk, any dtype, and nothing that grows with N x N."""

import sys

import pytest
import torch
from helpers import close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vscan.select import received
from vscan.select.received import attention_received


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


def states(heads: int, length: int, seed: int, width: int = 8):
    return torch.randn(2, heads, length, width, generator=torch.Generator().manual_seed(seed)).unbind(0)


def by_maps(query, key, lengths, scale):
    """From whole maps in float64."""
    columns = []
    for q, k in zip(query.double().split(lengths, dim=1), key.double().split(lengths, dim=1), strict=True):
        columns.append((q @ k.transpose(1, 2) * scale).softmax(dim=-1).mean(dim=1).sum(dim=0))
    return torch.cat(columns)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    heads=st.integers(1, 4),
    queries=st.sampled_from([1, 3, 64]),
    scale=st.sampled_from([1.0, 0.25, 4.0]),
    seed=st.integers(0, 99),
)
def test_it_is_the_column_mean_of_every_segments_map(lengths, heads, queries, scale, seed):
    query, key = states(heads, sum(lengths), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(received, "QUERIES", queries)
        found = attention_received(query, key, lengths, scale)
    expected = by_maps(query, key, lengths, scale)
    close(found.double(), expected, 1e-5)
    for part in found.split(lengths):  # every query gives each head's whole attention
        torch.testing.assert_close(part.sum(), torch.tensor(float(heads)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_fp32_for_states_in_half_precision(dtype):
    query, key = (part.to(dtype) for part in states(2, 300, seed=1))
    found = attention_received(query, key, [100, 200], 0.3)
    assert found.dtype == torch.float32
    close(found.double(), by_maps(query, key, [100, 200], 0.3), 1e-5)


def test_no_map_is_made():
    query, key = states(2, 2000, seed=2)
    with Largest() as largest:
        attention_received(query, key, [500, 1500], 0.3)
    assert largest.numel == received.QUERIES * 1500


def test_it_carries_no_gradient():
    query, key = states(1, 10, seed=3)
    assert not attention_received(query.requires_grad_(), key, [10], 1.0).requires_grad


def test_segments_of_other_tokens_are_refused():
    query, key = states(1, 10, seed=3)
    with pytest.raises(ValueError, match="expected segments of 10 tokens in all, got 9"):
        attention_received(query, key, [4, 5], 1.0)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.float32, "kernel"),
        ("cuda", torch.bfloat16, "kernel"),
        ("cuda", torch.float16, "kernel"),
        ("cuda", torch.float64, "chunks"),
        ("cpu", torch.bfloat16, "chunks"),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_a_gpu_takes_the_kernel_where_triton_is_installed(monkeypatch, device, dtype, expected, installed):
    monkeypatch.setattr(received, "gpu_version", lambda: (lambda *given: ("kernel", given)) if installed else None)
    monkeypatch.setattr(received, "received_in_chunks", lambda *given: ("chunks", given))
    with FakeTensorMode():
        query, key = torch.empty(2, 3, 10, 8, dtype=dtype, device=device)
        kind, given = attention_received(query, key, [4, 6], 0.5)
    assert kind == (expected if installed else "chunks")
    assert given[0] is query
    assert given[1] is key
    assert given[2:] == ([4, 6], 0.5)


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "vscan.kernels.received", raising=False)
    received.gpu_version.cache_clear()
    try:
        assert received.gpu_version() is None
    finally:
        received.gpu_version.cache_clear()
