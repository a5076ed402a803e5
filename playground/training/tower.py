"""Stage 1: a CLIP tower learns what lies on its patches, and its [CLS] what is in the scene.

Real towers know such things from captions. Here every patch has a label, because that takes minutes and not weeks.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel

from vscan.compat import clip_blocks, clip_entry, run_clip_block

from ..scenes.world import GRID
from . import running
from .labels import COLOUR, LETTER, NUM_CLASSES, NUM_SCENE_CLASSES, SHAPE, patch_labels, scene_labels
from .running import Stage, draw_batch, draw_scenes, run_stage
from .sizes import FEATURE_LAYER, WIDTH, vision_config

WINDOW = 12  # patches along a side of the small pictures that training begins with
GROUND_WEIGHT = 0.05
LABEL_WEIGHTS = (3.0, 1.0, 3.0, 1.0, 0.5, 0.5, 0.5, 0.5)


class Tower(nn.Module):
    """The tower with the heads that only training needs."""

    def __init__(self):
        super().__init__()
        self.tower = CLIPVisionModel(vision_config())
        nn.init.normal_(self.tower.embeddings.position_embedding.weight, std=0.02)
        with torch.no_grad():  # near patches begin with like positions
            self.tower.embeddings.position_embedding.weight[1:] += wave_positions(GRID, WIDTH)
        self.patch_head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(NUM_CLASSES)))
        # [CLS] answers at the depth that LLaVA reads, too: else all its looking could be left to the last block.
        self.scene_heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, NUM_SCENE_CLASSES)) for _ in range(2)
        )

    def states(self, pixels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [B, 1 + N, C] at the layer LLaVA reads, and at the end; `positions` are patches [B, N]."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls = embeddings.class_embedding.expand(len(pixels), 1, -1)
        table = embeddings.position_embedding
        first = torch.zeros_like(positions[:, :1])
        hidden = torch.cat([cls, patches], 1) + table(torch.cat([first, positions + 1], 1))
        hidden = clip_entry(self.tower, hidden)
        blocks = clip_blocks(self.tower)
        read = hidden
        for index, block in enumerate(blocks):
            hidden = run_clip_block(block, hidden)
            if index == len(blocks) + FEATURE_LAYER:
                read = hidden
        return read, hidden

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of every patch's labels, ground at a twentieth, and of the scene's at [CLS]."""
        read, end = self.states(batch["pixels"], batch["positions"])
        labels = batch["labels"]
        weight = torch.where(labels[..., SHAPE] > 0, 1.0, GROUND_WEIGHT).flatten()
        losses = []
        for index, logits in enumerate(self.patch_head(read[:, 1:]).split(NUM_CLASSES, -1)):
            each = F.cross_entropy(logits.flatten(0, 1), labels[..., index].flatten(), reduction="none")
            losses.append(LABEL_WEIGHTS[index] * (each * weight).sum() / weight.sum())
        for head, hidden in zip(self.scene_heads, (read, end), strict=True):
            logits = head(hidden[:, 0])
            losses.append(
                5 * F.binary_cross_entropy_with_logits(logits, batch["present"], weight=batch["present_weight"])
            )
        return sum(losses)


def wave_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column: [side * side, width]."""
    steps = torch.arange(side)[:, None] / torch.logspace(0, 1.5, width // 4)
    waves = torch.cat([steps.sin(), steps.cos()], 1)  # [side, width / 2]
    rows = waves[:, None].expand(side, side, -1)
    return 0.3 * torch.cat([rows, rows.transpose(0, 1)], -1).flatten(0, 1)


def grid_positions(scene) -> np.ndarray:
    """Numbers of a window's patches on the whole grid: int64 [side * side]."""
    rows, columns = np.indices((scene.side, scene.side))
    return ((rows + scene.row) * GRID + columns + scene.column).reshape(-1)


def to_pixels(pictures: list[np.ndarray], device) -> Tensor:
    """Pictures as CLIP's image processor makes them: float32 [B, 3, H, W]."""
    pixels = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    mean = pixels.new_tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = pixels.new_tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    return (pixels - mean) / std


def collate(scenes: list, device) -> dict[str, Tensor]:
    """What the tower's loss takes, from `draw_scenes`."""
    present, weight = zip(*(scene_labels(scene) for scene, _, _ in scenes), strict=True)
    arrays = {
        "positions": np.stack([grid_positions(scene) for scene, _, _ in scenes]),
        "labels": np.stack([patch_labels(scene).reshape(-1, len(NUM_CLASSES)) for scene, _, _ in scenes]),
        "present": np.stack(present),
        "present_weight": np.stack(weight),
    }
    batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return {**batch, "pixels": to_pixels([picture for _, picture, _ in scenes], device)}


def accuracies(model: Tower, device, side: int) -> dict[str, float]:
    """Shares of validation patches labelled rightly; small and large shapes apart, for the mean hides the small."""
    batch = collate(draw_scenes("validation", 0, range(2 * running.NUM_VALIDATION), side), device)
    read, _ = model.states(batch["pixels"], batch["positions"])
    guesses = [logits.argmax(-1) for logits in model.patch_head(read[:, 1:]).split(NUM_CLASSES, -1)]
    labels = batch["labels"]
    left, right = labels[..., 4], labels[..., 6]
    sign = labels[..., LETTER] > 0
    shape = (labels[..., SHAPE] > 0) & ~sign
    small = shape & (right - left == 2)
    boxed = torch.stack([guesses[index] == labels[..., index] for index in range(4, 8)]).all(0)

    def share(right: Tensor, among: Tensor) -> float:
        return round(float(right[among].float().mean()), 4)

    return {
        f"small{side}": share(guesses[SHAPE] == labels[..., SHAPE], small),
        f"large{side}": share(guesses[SHAPE] == labels[..., SHAPE], shape & ~small),
        f"colour{side}": share(guesses[COLOUR] == labels[..., COLOUR], shape | sign),
        f"letter{side}": share(guesses[LETTER] == labels[..., LETTER], sign),
        f"box{side}": share(boxed, shape | sign),
        f"ground{side}": share(guesses[SHAPE] == 0, labels[..., SHAPE] == 0),
    }


def train_tower(folder: Path, device, small: Stage, large: Stage) -> Tower:
    """Train on windows of 12 x 12 patches, then on whole pictures."""
    torch.manual_seed(0)
    model = Tower().to(device)
    for stage, side in ((small, WINDOW), (large, GRID)):

        def step_loss(step: int, stage=stage, side=side) -> Tensor:
            return model.loss(collate(draw_batch(side, step, stage.batch, side), device))

        def evaluate(side=side) -> dict[str, float]:
            return accuracies(model, device, side)

        run_stage(stage, folder, model, step_loss, evaluate, evaluate_every=max(1, stage.steps // 12))
    return model
