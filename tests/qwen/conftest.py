"""A tiny random Qwen2.5-VL for the tests of its commands."""

from pathlib import Path

import pytest
from tiny_qwen import build_checkpoint


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the published layout with random weights; tests leave it alone."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    build_checkpoint(folder)
    return folder
