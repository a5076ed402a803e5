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
from .muon import Muon

SAVE_EVERY = 120  # seconds
DECAY = 0.03  # of weights
NUM_VALIDATION = 32  # scenes that accuracies in the log are of


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: of its checkpoint and in the log.
        steps: optimiser steps.
        batch: pictures a step, over all workers.
        rate: highest learning rate of AdamW; linear warm-up, then a cosine down to a twentieth.
        warmup: steps.
        matrix_rate: highest learning rate of Muon for the matrices of a decoder's layers; 0 leaves all to AdamW.
        compact: save what is trained alone, in half precision: small enough for a repository, and a training that goes
            on from there differs by the rounding.
    """

    name: str
    steps: int
    batch: int
    rate: float
    warmup: int = 60
    matrix_rate: float = 0.0
    compact: bool = False

    def share_at(self, step: int) -> float:
        """Of the highest learning rates."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2

    def optimisers(self, model: nn.Module) -> list[tuple[float, torch.optim.Optimizer]]:
        """With their highest learning rates."""
        wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [p for name, p in wanted.items() if self.matrix_rate and "model.layers." in name and p.ndim == 2]
        others = [p for p in wanted.values() if all(p is not matrix for matrix in matrices)]
        found = [(self.rate, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=DECAY))]
        return [*found, (self.matrix_rate, Muon(matrices, DECAY))] if matrices else found


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


def draw_scenes(split: str, seed: int, numbers: range, side: int = GRID, pictures: bool = True):
    """Scenes by their numbers.

    Returns:
        A list of (scene, picture or None, the scene's random numbers).
    """
    batch = []
    for number in numbers:
        chance = source(split, seed, number)
        scene = draw_scene(chance, split, side)
        batch.append((scene, draw(scene, chance) if pictures else None, chance))
    return batch


def draw_batch(seed: int, step: int, number: int, side: int = GRID, pictures: bool = True):
    """This worker's share of the training scenes of a step, as `draw_scenes` gives them."""
    share = number // num_workers()
    start = step * number + rank() * share
    return draw_scenes("train", seed, range(start, start + share), side, pictures)


def compacted(state: dict, model: nn.Module) -> dict:
    """A stage's state with the trained weights alone, as float16, and the optimisers' matrices as bfloat16."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {name: value.half() for name, value in state["model"].items() if name in trained}

    def halved(value):
        if isinstance(value, dict):
            return {name: halved(one) for name, one in value.items()}
        if isinstance(value, list):
            return [halved(one) for one in value]
        return value.bfloat16() if isinstance(value, Tensor) and value.ndim else value  # AdamW's step has none

    return {**state, "model": weights, "optimisers": halved(state["optimisers"])}


def run_stage(
    stage: Stage,
    folder: Path,
    model: nn.Module,
    step_loss: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    evaluate_every: int,
) -> None:
    """Train what of a model wants gradients; go on where an interrupted run stopped; nothing if the stage is done.

    Args:
        folder: for `<stage>.pt` and `<stage>.jsonl`, the log.
        model: trained in place, and saved with its optimiser every two minutes.
        step_loss: from the step to this worker's loss.
        evaluate: accuracies on validation scenes; called on the first worker alone.
        evaluate_every: steps.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimisers = stage.optimisers(model)
    file, log = folder / f"{stage.name}.pt", folder / f"{stage.name}.jsonl"
    first, minutes = 0, 0.0
    if file.exists():
        saved = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(saved["model"], strict=not stage.compact)
        for (_, optimiser), state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        first, minutes = saved["step"], saved["minutes"]
    if rank() == 0:  # steps after the last checkpoint are done, and logged, again
        rows = log.read_text().splitlines() if log.exists() else []
        log.write_text("".join(f"{row}\n" for row in rows if json.loads(row)["step"] <= first))
    last_saved = time.monotonic()
    begun = last_saved - 60 * minutes
    mean = None
    bar = tqdm(
        range(first, stage.steps), stage.name, initial=first, total=stage.steps, disable=rank() > 0, mininterval=5
    )
    for step in bar:
        model.train()
        loss = step_loss(step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for rate, optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * stage.share_at(step)
            optimiser.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}")
        done = step + 1
        minutes = (time.monotonic() - begun) / 60
        if rank() == 0 and (done % evaluate_every == 0 or done == stage.steps):
            model.eval()
            with torch.no_grad():
                scores = evaluate()
            row = {"stage": stage.name, "step": done, "pictures": done * stage.batch, "minutes": round(minutes, 2)}
            with log.open("a") as lines:
                lines.write(json.dumps({**row, "loss": mean, **scores}) + "\n")
        if rank() == 0 and (done == stage.steps or time.monotonic() - last_saved > SAVE_EVERY):
            last_saved = time.monotonic()
            states = [optimiser.state_dict() for _, optimiser in optimisers]
            state = {"model": model.state_dict(), "optimisers": states, "step": done, "minutes": minutes}
            torch.save(compacted(state, model) if stage.compact else state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
