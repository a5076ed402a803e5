"""Fixtures shared by all tests: one thread, no network, where the recorded data lies."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models run faster on one thread, and two test runs beside each other do not fight."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of data recorded from the published code."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded data is not here: {GOLDEN.name} is expected in a folder `shared` beside the project")
    return GOLDEN
