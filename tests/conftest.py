"""Fixtures shared by all tests: one thread, no network, a tiny checkpoint, where the recorded data lies."""

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the original format with random weights, alone in its folder; a new one for every test file."""
    from playground.tiny import build_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    build_checkpoint(folder)
    return folder
