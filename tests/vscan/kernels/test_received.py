"""The Triton version of attention received, against the chunked one: on a GPU, and in Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vscan.select import received
from vscan.select.received import attention_received, received_in_chunks

ROOT = Path(__file__).resolve().parents[3]

# Heads, segments, width of a head. Blocks are of 64 or 128 tokens, and a program walks over 32 or 64 at a time.
CASES = [
    (2, [300], 80),  # Qwen2.5-VL's heads, padded to 128
    (3, [1, 64, 129, 7, 63, 65, 128], 8),
    (1, [256, 128], 64),
    (2, [70], 128),
    (1, [33, 200], 17),
]
DTYPES = [torch.float32, torch.float16]  # Triton's interpreter multiplies the bits of bfloat16 as if they were ints

CHILD = """
import sys, torch
from vscan.kernels.received import received_by_kernel
torch.save([received_by_kernel(*case) for case in torch.load(sys.argv[1])], sys.argv[2])
"""


def states(case, dtype):
    """Queries and keys as the tower holds them, [H, N, d] over memory [N, H, d], with large logits among them."""
    heads, lengths, width = case
    generator = torch.Generator().manual_seed(width)
    query, key = torch.randn(2, sum(lengths), heads, width, generator=generator).transpose(1, 2)
    key[:, ::50] *= 5
    return query.to(dtype), key.to(dtype), lengths, width**-0.5


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels give in Triton's interpreter, for every dtype and case; it is chosen when Triton is imported."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed, and so neither is its interpreter")
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save([states(case, dtype) for dtype in DTYPES for case in CASES], folder / "cases.pt")
    command = [sys.executable, "-c", CHILD, str(folder / "cases.pt"), str(folder / "found.pt")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(folder / "found.pt")
    return {(dtype, index): found.pop(0) for dtype in DTYPES for index in range(len(CASES))}


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{h} heads of {d}, {n}" for h, n, d in CASES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_give_what_the_chunks_give_in_tritons_interpreter(interpreted, dtype, index):
    found, case = interpreted[dtype, index], CASES[index]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, received_in_chunks(*states(case, dtype)), atol=1e-6, rtol=1e-5)
    for part in found.split(case[1]):
        torch.testing.assert_close(part.sum(), torch.tensor(float(case[0])))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*CASES, (16, [4096, 1024], 80)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_the_kernels_give_what_the_chunks_give_on_a_gpu(monkeypatch, dtype, case):
    query, key, *rest = states(case, dtype)
    expected = received_in_chunks(query, key, *rest)
    monkeypatch.setattr(received, "received_in_chunks", None)  # a GPU takes the kernels
    found = attention_received(query.cuda(), key.cuda(), *rest)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(found, attention_received(query.cuda(), key.cuda(), *rest))


@pytest.mark.gpu
def test_the_kernels_memory_grows_linearly():
    peaks = []
    for length in (4096, 16384):
        query, key = torch.randn(2, 16, length, 80, device="cuda", dtype=torch.bfloat16)
        attention_received(query, key, [length], 0.1)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention_received(query, key, [length], 0.1)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < 2 * 2 * 16 * 4096 * 4  # two fp32 numbers a head and token, and small change
    assert peaks[1] == pytest.approx(4 * peaks[0], rel=0.05)
