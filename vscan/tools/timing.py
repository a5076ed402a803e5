"""How time and memory are measured, and how the numbers are shown."""

import time
from collections.abc import Callable

import torch

from ..compat import memory_events


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The most memory that PyTorch's allocator held during an action, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    held = peak = 0
    for _, num_bytes in sorted(memory_events(profile), key=lambda event: event[0]):
        held += num_bytes
        peak = max(peak, held)
    return peak


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """A clock. One CPU thread is timed by the CPU time it got, which other jobs of the machine change little."""
    if device.type == "cpu":
        return ("CPU time", time.process_time) if torch.get_num_threads() == 1 else ("wall time", time.perf_counter)
    return "wall time", lambda: torch.cuda.synchronize(device) or time.perf_counter()


def spread(values: list[float], unit: str = "") -> str:
    """Median and half of the distance between the quartiles, as seconds, as a share, or plain."""
    if not values:
        return ""
    low, median, high = torch.tensor(values).double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    scale, unit = (100, unit) if unit == "%" else (1000, "ms") if unit == "s" and median < 1 else (1, unit)
    return f"{scale * median:.4g} ±{scale * (high - low) / 2:.2g} {unit}".rstrip()


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table, aligned so that it can be read as it stands."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, *lines)]
    padded.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
