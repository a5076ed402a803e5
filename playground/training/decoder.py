"""Stage 2, beside stage 1: a Llama learns to answer from what a tower would tell it.

In the place of visual features stand sums of embeddings of the patches' labels, so that the language side need not
wait for the tower. Positions of visual tokens vary from the start: a real decoder has seen so much text that it stands
renumbered positions, and this one has to as well.

Beside the answers it learns to know each thing where the question has named it (`packing.NAMED_AFTER`): answers alone
taught it which colours and shapes there are long before they taught it which go together.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from ..scenes.questions import for_training
from ..scenes.world import GRID
from . import running
from .labels import NUM_CLASSES, THING_CLASSES, patch_labels
from .packing import Packer, accuracies, answer_loss
from .running import Stage, draw_batch, draw_scenes, run_stage
from .sizes import TINY, WIDTH, Depth, text_config
from .tower import grid_positions

WINDOW = 16  # patches along a side: the least that hold as many things as a whole picture
NUM_PREFIX = 5  # ids before the image


class Oracle(nn.Module):
    """Visual tokens as the labels of their patches: the sum of one embedding a label, and of row and column."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(number, WIDTH) for number in (*NUM_CLASSES, GRID, GRID))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, labels: Tensor, positions: Tensor) -> Tensor:
        """From labels [B, N, 8] and patches [B, N] to tokens [B, N, D]."""
        columns = [*labels.unbind(-1), positions // GRID, positions % GRID]
        return sum(table(column) for table, column in zip(self.tables, columns, strict=True))


class Decoder(nn.Module):
    """A Llama with the oracle it learns from, and the head that only training needs."""

    def __init__(self, depth: Depth = TINY):
        super().__init__()
        self.llama = LlamaForCausalLM(text_config(depth))
        nn.init.normal_(self.llama.model.embed_tokens.weight, std=0.3)
        self.oracle = Oracle()
        self.naming = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(THING_CLASSES)))


def place_tokens(patches: np.ndarray, chance: np.random.Generator, shifted: bool) -> tuple[np.ndarray, float]:
    """Positions of a picture's visual tokens, and of the text behind them.

    Args:
        patches: their numbers on the grid [N].
        shifted: anywhere: spread or pressed together with uneven gaps, the text behind them at a distance; else at
            their places on the grid.
    """
    if not shifted:
        return NUM_PREFIX + patches.astype(np.float32), float(NUM_PREFIX + GRID**2)
    number = len(patches)
    gaps = (1 - chance.random(number)) if chance.random() < 0.5 else np.ones(number)
    span = float(np.exp(chance.uniform(np.log(40), np.log(700))))
    places = (
        NUM_PREFIX + chance.integers(0, 40) * (chance.random() < 0.3) + (np.cumsum(gaps) - gaps[0]) * span / gaps.sum()
    )
    return places.astype(np.float32), float(places[-1] + 1 + chance.integers(0, 200) * (chance.random() < 0.3))


def collate(scenes: list, packer: Packer, device, shifted: float = 0.5):
    """Labels [B, N, 8], patches [B, N], packed questions, positions [B, N] and start [B] of `draw_scenes`'s scenes."""
    questions = [for_training(scene, chance) for scene, _, chance in scenes]
    patches = np.stack([grid_positions(scene) for scene, _, _ in scenes])
    placed = [
        place_tokens(row, chance, chance.random() < shifted)
        for row, (_, _, chance) in zip(patches, scenes, strict=True)
    ]
    labels = np.stack([patch_labels(scene).reshape(-1, len(NUM_CLASSES)) for scene, _, _ in scenes])
    arrays = (
        labels,
        patches,
        np.stack([row for row, _ in placed]),
        np.array([start for _, start in placed], np.float32),
    )
    labels, patches, places, start = (torch.from_numpy(array).to(device) for array in arrays)
    return labels, patches, packer(questions, device), places, start


def evaluate(model: Decoder, visual_of, packer: Packer, device, side: int) -> dict[str, float]:
    """Accuracy on validation scenes, at the grid's own positions and (with a ~) at shifted ones.

    Args:
        visual_of: from scenes, labels and patches to visual tokens.
        side: of the pictures, in patches.
    """
    scores = {}
    scenes = draw_scenes("validation", 1, range(running.NUM_VALIDATION), side)
    for name, shifted in (("", 0.0), ("~", 1.0)):
        labels, patches, packed, places, start = collate(scenes, packer, device, shifted)
        found = accuracies(model.llama, packed, visual_of(scenes, labels, patches), places, start)
        scores |= {f"{kind}{side}{name}": value for kind, value in found.items()}
    return scores


def train_decoder(folder: Path, device, tokenizer, stage: Stage) -> Decoder:
    """Train on windows; whole pictures come with the tower's features."""
    torch.manual_seed(1)
    model, packer = Decoder().to(device), Packer(tokenizer)

    def step_loss(step: int) -> Tensor:
        scenes = draw_batch(100, step, stage.batch, WINDOW, pictures=False)
        labels, patches, packed, places, start = collate(scenes, packer, device)
        return answer_loss(model.llama, model.naming, packed, model.oracle(labels, patches), places, start)

    def score() -> dict[str, float]:
        def visual(scenes, labels, patches):
            return model.oracle(labels, patches)

        return evaluate(model, visual, packer, device, WINDOW)

    run_stage(stage, folder, model, step_loss, score, evaluate_every=max(1, stage.steps // 20))
    return model
