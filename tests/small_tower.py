"""A tiny checkpoint whose pictures are a quarter of the tokens: the tower takes most of a test's time."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel


def make_tower_small(folder: Path) -> Path:
    """Give a checkpoint of `playground.tiny` a tower of 12 x 12 tokens, of 28 pixels each; returns its folder."""
    config = CLIPVisionConfig.from_pretrained(folder / "clip_tower", patch_size=28)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(config).save_pretrained(folder / "clip_tower")
    return folder
