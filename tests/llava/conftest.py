"""A small Video-LLaVA, and clips to ask it about."""

import shutil
from pathlib import Path

import pytest
from clip_helpers import write_questions


@pytest.fixture(scope="session")
def video_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the original format with random weights: 8 x 8 tokens a frame, and [CLS]."""
    from tiny_video import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny-video-llava")


@pytest.fixture(scope="session")
def drawn_clips(tmp_path_factory) -> Path:
    """Six questions about three clips, of which the last one is an AVI; right answers in another order."""
    from tiny_video import draw_clip

    folder = tmp_path_factory.mktemp("drawn")
    for number, ending in enumerate(("mp4", "mp4", "avi")):
        draw_clip(folder / "videos" / f"clip{number}.{ending}", seed=number)
    names = [f"clip{number % 3}" for number in range(6)]
    write_questions(folder, [(f"v_{number}", name, f"what is {number}?") for number, name in enumerate(names)])
    return folder


@pytest.fixture
def clip_data(drawn_clips, tmp_path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(drawn_clips, tmp_path / "data"))
