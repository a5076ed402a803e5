"""A command in two processes that share its rows, in the environment of torchrun, without its imports in each of them.

torchrun itself, whose three processes import torch one by one, starts those of tests/llava/test_round_trip.py.
"""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

from vscan.eval.guard import run_command

PATIENCE = 300  # seconds for both; one that waits for the other for ever is an error


def by_torchrun(module: str, argv: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command's module with torchrun; `folder` is not used."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", module]
    return subprocess.run([*command, *argv], capture_output=True, text=True, check=False)


def by_fork(module: str, argv: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command's module in two processes that a server forks, which has imported all that it can.

    Args:
        module: the dotted name, which has a `main`.
        argv: the command's flags.
        folder: an empty one, for what the two print.

    Returns:
        As of a process: the larger exit code, and what rank 0 and then rank 1 printed.
    """
    processes = multiprocessing.get_context("forkserver")
    # As benchmarks/kills.py: there is one server, which has imported what whoever came first asked for.
    processes.set_forkserver_preload(["llava.eval.model_vqa_loader", "llava.eval.answering", "playground.tiny"])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder.mkdir()
    ranks = [processes.Process(target=_run, args=(module, argv, rank, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE)
    left = [process for process in ranks if process.is_alive()]
    for process in left:
        process.kill()
        process.join()
    printed = ["".join((folder / f"{rank}.{name}").read_text() for rank in range(2)) for name in ("out", "err")]
    assert not left, f"{len(left)} of two processes did not end; they printed {printed}"
    # A process that was killed by a signal has a negative code.
    return subprocess.CompletedProcess(argv, max(abs(process.exitcode) for process in ranks), *printed)


def _run(module: str, argv: list[str], rank: int, port: int, folder: Path) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        with (folder / f"{rank}.{name}").open("w") as file:
            os.dup2(file.fileno(), stream)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    torch.set_num_threads(1)
    sys.argv = [module, *argv]
    run_command(importlib.import_module(module).main)
