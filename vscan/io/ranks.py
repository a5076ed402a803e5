"""Several processes for one answers file, as torchrun starts them: which rows are whose, and who waits for whom."""

import ctypes
import os
import signal
import sys
from datetime import timedelta


def die_with_parent(parent: int | None = None) -> None:
    """Let this process die when the one that started it is killed (prctl's PR_SET_PDEATHSIG); Linux only.

    Args:
        parent: its process id: where it is gone already, and so cannot be waited for, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _number(name: str, default: int) -> int:
    """An environment variable that torchrun sets.

    Raises:
        ValueError: if it is no number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"environment variable {name}: expected a number of 0 or more, got {text!r}")
    return int(text)


class Ranks:
    """This process among those that torchrun started, or alone.

    Processes only tell each other how far they are, so gloo serves on GPUs too: several may share one, and a rank that
    dies ends the others at once.

    Args:
        use_nccl: speak through nccl where every process of this machine has a GPU of its own.

    Raises:
        ValueError: for environment variables that do not say which process this is, and of how many.
    """

    def __init__(self, use_nccl: bool = False):
        self.rank, self.num_ranks = _number("RANK", 0), _number("WORLD_SIZE", 1)
        self.local_rank = _number("LOCAL_RANK", self.rank)
        given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
        if len(given) == 1 or self.rank >= self.num_ranks:
            expected = "both RANK and WORLD_SIZE, the first below the second, as torchrun sets them, or neither"
            got = " and ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"environment variables: expected {expected}, got {got}")
        if self.num_ranks > 1:
            import torch.distributed as dist

            # A torchrun that is killed leaves its processes behind, and they would go on beside those of the next
            # start.
            die_with_parent()
            backend = "nccl" if use_nccl and self._has_own_gpu() else "gloo"
            # A rank that is done waits for the slowest one, which may take hours.
            dist.init_process_group(backend, timeout=timedelta(days=30))

    def _has_own_gpu(self) -> bool:
        """Whether each process of this machine has a GPU; makes this process's the one that nccl uses."""
        import torch

        if torch.cuda.device_count() < _number("LOCAL_WORLD_SIZE", self.num_ranks):
            return False
        torch.cuda.set_device(self.local_rank)
        return True

    def share(self, value=None):
        """What rank 0 gives, for all; returns when all have come here.

        Raises:
            ChildProcessError: if another rank has failed.
        """
        if self.num_ranks == 1:
            return value
        import torch.distributed as dist

        box = [value]
        try:
            dist.broadcast_object_list(box)
            dist.barrier()
        except RuntimeError as error:
            raise ChildProcessError(f"rank {self.rank}: another rank has failed; its error says why") from error
        return box[0]

    def shard(self, rows: list[int]) -> list[int]:
        """This rank's run of `rows`; runs differ by one row at most."""
        return rows[len(rows) * self.rank // self.num_ranks : len(rows) * (self.rank + 1) // self.num_ranks]

    def device(self, device: str | None) -> str | None:
        """Where this rank runs: on a GPU of its own, as long as there are enough and none is asked for by number."""
        if self.num_ranks == 1 or device not in (None, "cuda"):
            return device
        import torch

        num_gpus = torch.cuda.device_count()
        return f"cuda:{self.local_rank % num_gpus}" if num_gpus else device
