"""A command in two processes that share its rows: forks of the test, whose imports are done, or torchrun's."""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vscan.eval.guard import run_command

# What torchrun adds is its own imports and flags; tests/script_helpers.py has its parser read those of the scripts.
STARTS = ["forks", pytest.param("torchrun", marks=pytest.mark.slow)]
SECONDS = 300  # after which processes that wait for each other have failed


def run_two(start: str, module: str, argv: list[str]) -> subprocess.CompletedProcess:
    """Run a command's module in two processes.

    Args:
        start: of STARTS.
        module: with a `main`.
        argv: its flags.

    Returns:
        What both printed, and the exit code of the one that failed.
    """
    if start == "forks":
        with tempfile.TemporaryDirectory() as folder:
            return _fork(module, argv, Path(folder))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", module, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _fork(module: str, argv: list[str], folder: Path) -> subprocess.CompletedProcess:
    for name in (module, "llava.eval.answering" if module.startswith("llava") else "qwen.eval.answering"):
        importlib.import_module(name)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    files = [[folder / f"{stream}.rank{rank}" for stream in ("stdout", "stderr")] for rank in range(2)]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_be, args=(rank, port, module, argv, files[rank])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    printed = ["".join(of_rank[stream].read_text() for of_rank in files) for stream in range(2)]
    return subprocess.CompletedProcess(argv, next(filter(None, codes), 0), *printed)


def _be(rank: int, port: int, module: str, argv: list[str], files: list[Path]) -> None:
    """Be one of the processes, as torchrun would have started it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = [module, *argv]
    try:
        run_command(importlib.import_module(module).main)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
