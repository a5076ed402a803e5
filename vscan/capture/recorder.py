"""How a function of static buffers is recorded once and replayed: a CUDA graph, or, on a CPU, the function itself."""

from collections.abc import Callable
from typing import Protocol

import torch


class NotRecorded(Exception):
    """A function ran, and could not be recorded; the text says why."""


class Recorder(Protocol):
    """What records.

    Args:
        num_bytes: that recordings take beside the buffers which they read and write.
    """

    num_bytes: int

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function at least once, so that its results are where they belong, and return what does it again.

        The function reads and writes static buffers, reads nothing back to the host, and gives the same results
        however often it runs on the same input.

        Raises:
            NotRecorded: where it ran, with its results in place, and cannot be recorded.
        """

    def wait(self) -> None:
        """Wait until nothing that was replayed is under way."""

    def forget(self) -> None:
        """Nothing that was recorded is there any more."""


class EagerRecorder:
    """Records nothing: runs the function again. For a CPU, where it tests the way to the graphs."""

    num_bytes = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function

    def wait(self) -> None:
        pass

    def forget(self) -> None:
        pass


class CudaRecorder:
    """Records CUDA graphs into one pool of memory.

    What a graph computes on the way lies in the pool, and the next replay of any graph may overwrite it: results are
    copied out into buffers of their own by the last nodes of each graph.

    Args:
        device: where they run.
    """

    warm_up = 2  # runs beforehand, on a stream of their own: libraries set themselves up in the first ones

    def __init__(self, device: torch.device):
        self.device, self.num_bytes = device, 0
        self.side = torch.cuda.Stream(device)
        self.pool, self.last = torch.cuda.graph_pool_handle(), None

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self.device):
            return self._record(function)

    def _record(self, function: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            for _ in range(self.warm_up):
                function()
        current.wait_stream(self.side)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before, graph = torch.cuda.memory_reserved(self.device), torch.cuda.CUDAGraph()
        # Other threads, such as loaders that pin memory, may use the device meanwhile.
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.side, capture_error_mode="thread_local"):
                function()
        except Exception as error:
            raise NotRecorded(str(error).partition("\n")[0]) from error
        self.num_bytes += max(0, torch.cuda.memory_reserved(self.device) - before)

        def replay() -> None:
            stream = torch.cuda.current_stream(self.device)
            if self.last is not None and self.last != stream:
                stream.wait_stream(self.last)  # graphs share the pool: they never run beside each other
            self.last = stream
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        self.num_bytes, self.pool, self.last = 0, torch.cuda.graph_pool_handle(), None


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device; None where nothing does."""
    if device.type == "cuda":
        return CudaRecorder(device)
    return EagerRecorder() if device.type == "cpu" else None
