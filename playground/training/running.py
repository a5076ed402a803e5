"""Steps, learning rates, several workers, checkpoints, the log: what all stages share."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from ..scenes.picture import draw
from ..scenes.world import GRID, draw_scene, source

SAVE_EVERY = 120  # seconds
NUM_VALIDATION = 32  # scenes that accuracies in the log are of


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: of its checkpoint and in the log.
        steps: optimiser steps.
        batch: pictures a step, over all workers.
        rate: highest learning rate; linear warm-up, then a cosine down to a twentieth.
        warmup: steps.
    """

    name: str
    steps: int
    batch: int
    rate: float
    warmup: int = 60

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def start_workers() -> None:
    """Join the group that torchrun's variables name, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over the workers, in one message."""
    if num_workers() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_workers()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def draw_batch(split: str, seed: int, step: int, number: int, side: int = GRID, pictures: bool = True):
    """This worker's share of a step's scenes.

    Returns:
        A list of (scene, picture or None, the scene's random numbers).
    """
    start, share = step * number, number // num_workers()
    batch = []
    for index in range(start + rank() * share, start + (rank() + 1) * share):
        chance = source(split, seed, index)
        scene = draw_scene(chance, split, side)
        batch.append((scene, draw(scene, chance) if pictures else None, chance))
    return batch


class Log:
    """Rows of a JSON lines file, written by the first worker."""

    def __init__(self, folder: Path):
        self.file = folder / "log.jsonl"

    def write(self, **row) -> None:
        if rank() == 0:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")


def run_stage(
    stage: Stage,
    folder: Path,
    model: nn.Module,
    step_loss: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    evaluate_every: int,
    decay: float = 0.03,
) -> None:
    """Train what of a model wants gradients; go on where an interrupted run stopped; nothing if the stage is done.

    Args:
        folder: for `<stage>.pt` and log.jsonl.
        model: trained in place, and saved with its optimiser every two minutes.
        step_loss: from the step to this worker's loss.
        evaluate: accuracies on validation scenes; called on the first worker alone.
        evaluate_every: steps.
        decay: weight decay.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=decay)
    file, log = folder / f"{stage.name}.pt", Log(folder)
    first, minutes = 0, 0.0
    if file.exists():
        saved = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first, minutes = saved["step"], saved["minutes"]
    begun = last_saved = time.monotonic() - 60 * minutes
    mean = None
    bar = tqdm(
        range(first, stage.steps), stage.name, initial=first, total=stage.steps, disable=rank() > 0, mininterval=5
    )
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = stage.rate_at(step)
        model.train()
        loss = step_loss(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}")
        done = step + 1
        minutes = (time.monotonic() - begun) / 60
        if rank() == 0 and (done % evaluate_every == 0 or done == stage.steps):
            model.eval()
            with torch.no_grad():
                scores = evaluate()
            log.write(
                stage=stage.name, step=done, pictures=done * stage.batch, minutes=round(minutes, 2), loss=mean, **scores
            )
        if rank() == 0 and (done == stage.steps or time.monotonic() - last_saved > SAVE_EVERY):
            last_saved = time.monotonic()
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": done, "minutes": minutes}
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
