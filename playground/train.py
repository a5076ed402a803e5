"""Train the embedded model from nothing: `python -m playground.train [--device cuda|cpu] [--resume]`.

Tower and decoder are trained beside each other, a process each; then both go into one model, trained by two
processes on a CPU and by one on a GPU. Checkpoints and logs of the stages lie in --out, the model in --model.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from llava.tokenizer import load_tokenizer
from vscan.eval.arguments import run_command

from .training.curves import plot_curves
from .training.decoder import Decoder, train_decoder
from .training.export import export
from .training.joint import train_joint
from .training.running import Stage, rank, start_workers
from .training.tower import Tower, train_tower
from .vocabulary import write_tokenizer

HERE = Path(__file__).parent
# What made the shipped model, but for the restarts that README.md tells.
TOWER = (Stage("tower_small", 1600, 24, 2.5e-3), Stage("tower", 300, 8, 1.2e-3))
DECODER = Stage("decoder", 2000, 8, 2e-3, matrix_rate=2e-2)
JOINT = (Stage("projector", 150, 8, 3e-3), Stage("joint", 1500, 8, 1e-3, matrix_rate=1e-2))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m playground.train", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "train", help="folder for checkpoints and logs")
    parser.add_argument("--model", type=Path, default=HERE / "out" / "tiny-llava", help="the checkpoint to write")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps; small for a trial")
    parser.add_argument("--part", choices=("tower", "decoder", "joint"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not 0 < args.scale <= 10:
        parser.error(f"--scale: expected a number above 0 and at most 10, got {args.scale}")
    return args


def scaled(stage: Stage, scale: float) -> Stage:
    steps = max(2, round(stage.steps * scale))
    return Stage(stage.name, steps, stage.batch, stage.rate, min(stage.warmup, steps // 2))


def load_part(model: torch.nn.Module, file: Path) -> torch.nn.Module:
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
    return model


def run_part(args: argparse.Namespace) -> None:
    """One process's work."""
    if args.device == "cpu":
        torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.out)
    if args.part == "tower":
        train_tower(args.out, args.device, *(scaled(stage, args.scale) for stage in TOWER))
    elif args.part == "decoder":
        train_decoder(args.out, args.device, tokenizer, scaled(DECODER, args.scale))
    else:
        start_workers()
        tower = load_part(Tower(), args.out / f"{TOWER[-1].name}.pt")
        decoder = load_part(Decoder(), args.out / f"{DECODER.name}.pt")
        stages = tuple(scaled(stage, args.scale) for stage in JOINT)
        model = train_joint(args.out, args.device, tokenizer, tower, decoder, stages)
        if rank() == 0:
            export(model, args.out, args.model)
            logs = [args.out / f"{stage.name}.jsonl" for stage in (*TOWER, DECODER, *JOINT)]
            (args.model / "training.jsonl").write_text("".join(log.read_text() for log in logs))
            plot_curves(args.model / "training.jsonl", args.model / "training.png")


def start(args: argparse.Namespace, part: str, **variables: str) -> subprocess.Popen:
    """Start a process for one part."""
    flags = ["--device", args.device, "--out", args.out, "--model", args.model, "--scale", args.scale, "--part", part]
    threads = {"OMP_NUM_THREADS": "1"} if args.device == "cpu" else {}
    command = [sys.executable, "-m", "playground.train", *map(str, flags)]
    return subprocess.Popen(command, env={**os.environ, **threads, **variables})


def wait(processes: list[subprocess.Popen]) -> None:
    """Wait for all of them; if one fails, stop the others."""
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            time.sleep(1)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    if any(process.returncode for process in processes):
        raise ValueError("a part of the training failed: what it said stands above, and --resume goes on from there")


def main(argv: list[str]) -> None:
    """Run the command; ValueError for bad input or a part that fails."""
    args = parse(argv)
    if args.part:
        return run_part(args)
    if not args.resume and any(args.out.glob("*.jsonl")):
        raise ValueError(f"--out: expected a new folder for training, or --resume, got a run in {args.out}")
    if args.model.exists() and not (args.model / "training.jsonl").is_file():
        raise ValueError(f"--model: expected a new folder or an earlier model of this command, got {args.model}")
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer.model").exists():
        write_tokenizer(args.out)
    wait([start(args, "tower"), start(args, "decoder")])
    number = 2 if args.device == "cpu" else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    wait([start(args, "joint", **group, RANK=str(index)) for index in range(number)])
    print(f"the model lies in {args.model}, with its log and its curves")


if __name__ == "__main__":
    run_command(main)
