"""Train an embedded model from nothing: `python -m playground.train [--model NAME] [--device cuda|cpu]`.

    tiny-llava          tower and decoder are trained beside each other, a process each; then both go into one model,
                        trained by two processes on a CPU and by one on a GPU
    tiny-llava-deep     its decoder grows from that of a tiny-llava (--base; without one that is trained first), and is
                        trained on by one process

Checkpoints and logs of the stages lie in --out, the model in --to. The same command goes on where it was stopped.
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
DEEP = "tiny-llava-deep"
SHIPPED = HERE / "models" / "tiny-llava"
FOLDERS = {  # of checkpoints and logs, and of the model
    "tiny-llava": (HERE / "out" / "train", HERE / "out" / "tiny-llava"),
    DEEP: (HERE / "models" / DEEP / "state", HERE / "models" / DEEP),
}
PARTS = ("tower", "decoder", "joint", "deep")


def parse(arguments: list[str]) -> Namespace:
    parser = Parser(prog="python -m playground.train", description="Train an embedded model from nothing.")
    add(parser, "--model", choices=tuple(FOLDERS), default="tiny-llava", help="which one")
    add(parser, "--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add(parser, "--out", type=Path, help="folder for checkpoints and logs; default: the model's own")
    add(parser, "--to", type=Path, help="the checkpoint to write; default: the model's own")
    add(parser, "--base", type=Path, default=SHIPPED, help=f"a tiny-llava that {DEEP} grows from")
    add(parser, "--from-nothing", action="store_true", help="train that tiny-llava first, too")
    add(parser, "--scale", type=float, default=1.0, help="share of the steps; small for a trial")
    add(parser, "--part", choices=PARTS, help=SUPPRESS)
    args = parser.parse_args(arguments)
    if not 0 < args.scale <= 10:
        parser.error(f"--scale: expected a number above 0 and at most 10, got {args.scale}")
    args.out, args.to = (given or own for given, own in zip((args.out, args.to), FOLDERS[args.model], strict=True))
    return args


def start(args: Namespace, part: str, **variables: str) -> subprocess.Popen:
    """Start a process for one part."""
    names = ("model", "device", "out", "to", "base", "scale")
    flags = [text for name in names for text in (f"--{name}", str(getattr(args, name)))]
    threads = {"OMP_NUM_THREADS": "1"} if args.device == "cpu" else {}
    command = [sys.executable, "-m", "playground.train", *flags, "--part", part]
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
        raise ValueError("a part of the training failed: what it said stands above, and the same command goes on")


def train_tiny(args: Namespace) -> None:
    """Tower and decoder, then both as one model."""
    wait([start(args, "tower"), start(args, "decoder")])
    number = 2 if args.device == "cpu" else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    wait([start(args, "joint", **group, RANK=str(index)) for index in range(number)])


def check(args: Namespace) -> None:
    """ValueError for a folder that would be written over, or a base that is none."""
    inside = {file.name for file in args.to.iterdir()} - {args.out.name} if args.to.exists() else ()
    if inside and "training.jsonl" not in inside:
        raise ValueError(f"--to: expected a new folder or an earlier model of this command, got {args.to}")
    if args.model == DEEP and not args.from_nothing and not (args.base / "model.safetensors").is_file():
        raise ValueError(f"--base: expected the folder of a trained tiny-llava, or --from-nothing, got {args.base}")


def main(argv: list[str]) -> None:
    """Run the command; ValueError for bad input or a part that fails."""
    args = parse(argv)
    if args.part:
        from .training.parts import run_part

        return run_part(args)
    check(args)

    import torch

    from .vocabulary import write_tokenizer

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.model == DEEP and args.from_nothing:
        flags = [f"--device={args.device}", f"--scale={args.scale}"]
        main(flags)
        args.base = FOLDERS["tiny-llava"][1]
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer.model").exists():
        write_tokenizer(args.out)
    if args.model == DEEP:
        wait([start(args, "deep")])
    else:
        train_tiny(args)
    print(f"the model lies in {args.to}, with its log and its curves")


if __name__ == "__main__":
    run_command(main)
