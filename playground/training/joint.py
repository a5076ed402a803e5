"""Stages 3 and 4, as LLaVA trains: the tower is frozen; the projector learns to speak to the decoder, then projector
and decoder learn to answer from real features.

The projector begins by giving the embeddings that the decoder was trained on, and is let go of them little by little.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..scenes.world import GRID
from .decoder import WINDOW, Decoder, collate, evaluate
from .labels import SHAPE
from .packing import Packer, answer_loss
from .running import Stage, draw_batch, run_stage
from .sizes import WIDTH
from .tower import Tower, to_pixels

SIDES = (GRID, WINDOW)  # of the pictures of one step and the next: windows cost less, with as many things


class Joint(nn.Module):
    """Tower, projector and decoder; the oracle for what the projector begins with."""

    def __init__(self, tower: Tower, decoder: Decoder):
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.decoder = decoder
        self.decoder.oracle.requires_grad_(False)
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def features(self, scenes: list, patches: Tensor) -> Tensor:
        """What LLaVA's tower gives for the pictures of `draw_scenes`: [B, N, C]."""
        with torch.no_grad():
            pixels = to_pixels([picture for _, picture, _ in scenes], patches.device)
            return self.tower.states(pixels, patches)[0][:, 1:]

    def visual(self, scenes: list, labels: Tensor, patches: Tensor) -> Tensor:
        return self.projector(self.features(scenes, patches))

    def distance(self, visual: Tensor, labels: Tensor, patches: Tensor) -> Tensor:
        """Mean squared distance to the oracle's embeddings, ground patches at a tenth."""
        target = self.decoder.oracle(labels, patches)
        weight = torch.where(labels[..., SHAPE] > 0, 1.0, 0.1)
        return (F.mse_loss(visual, target, reduction="none").mean(-1) * weight).sum() / weight.sum()


def train_joint(folder: Path, device, tokenizer, tower: Tower, decoder: Decoder, stages: tuple[Stage, Stage]) -> Joint:
    """Train the projector alone, then projector and decoder."""
    torch.manual_seed(2)
    model, packer = Joint(tower, decoder).to(device), Packer(tokenizer)
    first, second = stages

    def projector_loss(step: int) -> Tensor:
        scenes = draw_batch(300, step, first.batch)
        labels, patches, *_ = collate(scenes, packer, device)
        return model.distance(model.visual(scenes, labels, patches), labels, patches)

    def joint_loss(step: int) -> Tensor:
        side = SIDES[step % len(SIDES)]
        scenes = draw_batch(400 + side, step, second.batch, side)
        labels, patches, packed, places, start = collate(scenes, packer, device)
        visual = model.visual(scenes, labels, patches)
        pull = max(0.0, 1 - step / (second.steps / 4))
        distance = model.distance(visual, labels, patches) if pull else 0.0
        return answer_loss(decoder.llama, decoder.naming, packed, visual, places, start) + pull * distance

    def score() -> dict[str, float]:
        return evaluate(model.decoder, model.visual, packer, device, GRID)

    decoder.llama.requires_grad_(False)
    run_stage(first, folder, model, projector_loss, score, evaluate_every=first.steps)
    decoder.llama.requires_grad_(True)
    run_stage(second, folder, model, joint_loss, score, evaluate_every=max(1, second.steps // 20))
    return model
