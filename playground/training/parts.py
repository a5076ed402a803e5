"""One process of `playground.train`: the tower, the decoder, both as one model, or a deep model grown from that."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from llava.tokenizer import load_tokenizer

from .curves import plot_curves
from .decoder import Decoder, train_decoder
from .export import export
from .growing import train_deep
from .joint import Joint, train_joint
from .running import Stage, rank, start_workers
from .tower import Tower, train_tower

# What made the shipped model, but for the restarts that README.md tells.
TOWER = (Stage("tower_small", 1600, 24, 2.5e-3), Stage("tower", 300, 8, 1.2e-3))
DECODER = Stage("decoder", 2000, 8, 2e-3, matrix_rate=2e-2)
JOINT = (Stage("projector", 150, 8, 3e-3), Stage("joint", 1500, 8, 1e-3, matrix_rate=1e-2))
DEEP = Stage("deep", 300, 4, 2e-3, warmup=10, matrix_rate=5e-3, compact=True)


def scaled(stage: Stage, scale: float) -> Stage:
    steps = max(2, round(stage.steps * scale))
    return replace(stage, steps=steps, warmup=min(stage.warmup, steps // 2))


def load_part(model: torch.nn.Module, file: Path) -> torch.nn.Module:
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
    return model


def run_part(args: Namespace) -> None:
    """One process's work."""
    if args.device == "cpu":
        torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.out)
    if args.part == "tower":
        train_tower(args.out, args.device, *(scaled(stage, args.scale) for stage in TOWER))
    elif args.part == "decoder":
        train_decoder(args.out, args.device, tokenizer, scaled(DECODER, args.scale))
    elif args.part == "deep":
        stage = scaled(DEEP, args.scale)
        write(train_deep(args.out, args.device, tokenizer, args.base, stage), args, (stage,))
    else:
        start_workers()
        tower = load_part(Tower(), args.out / f"{TOWER[-1].name}.pt")
        decoder = load_part(Decoder(), args.out / f"{DECODER.name}.pt")
        stages = tuple(scaled(stage, args.scale) for stage in JOINT)
        model = train_joint(args.out, args.device, tokenizer, tower, decoder, stages)
        if rank() == 0:
            write(model, args, (*TOWER, DECODER, *JOINT))


def write(model: Joint, args: Namespace, stages: tuple[Stage, ...]) -> None:
    """The checkpoint, with the stages' logs and curves."""
    log = "".join((args.out / f"{stage.name}.jsonl").read_text() for stage in stages)
    export(model, args.out, args.to)
    (args.to / "training.jsonl").write_text(log)
    plot_curves(args.to / "training.jsonl", args.to / "training.png")
