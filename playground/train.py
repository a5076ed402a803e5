"""Train the embedded model from nothing: `python -m playground.train [--device cuda|cpu] [--resume]`.

Tower and decoder are trained beside each other, a process each; then both go into one model, trained by two
processes on a CPU and by one on a GPU. Checkpoints and logs of the stages lie in --out, the model in --model.
"""

import os
import socket
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from pathlib import Path

from vscan.eval.arguments import Parser, add, run_command

HERE = Path(__file__).parent


def parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="python -m playground.train", description="Train the embedded model from nothing.")
    add(parser, "--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add(parser, "--resume", action="store_true", help="go on where an interrupted run stopped")
    add(parser, "--out", type=Path, default=HERE / "out" / "train", help="folder for checkpoints and logs")
    add(parser, "--model", type=Path, default=HERE / "out" / "tiny-llava", help="the checkpoint to write")
    add(parser, "--scale", type=float, default=1.0, help="share of the steps; small for a trial")
    add(parser, "--part", choices=("tower", "decoder", "joint"), help=SUPPRESS)
    args = parser.parse_args(arguments)
    if not 0 < args.scale <= 10:
        parser.error(f"--scale: expected a number above 0 and at most 10, got {args.scale}")
    return args


def start(args: Namespace, part: str, **variables: str) -> subprocess.Popen:
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
        from .training.parts import run_part

        return run_part(args)
    if not args.resume and any(args.out.glob("*.jsonl")):
        raise ValueError(f"--out: expected a new folder for training, or --resume, got a run in {args.out}")
    if args.model.exists() and not (args.model / "training.jsonl").is_file():
        raise ValueError(f"--model: expected a new folder or an earlier model of this command, got {args.model}")

    import torch

    from .vocabulary import write_tokenizer

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
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
