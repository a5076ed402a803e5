"""Tensors made on the host once and used again: tables of a grid, numbers of a batch.

Making one copies it to the device, which a recording (`vscan.capture`) must not do and a prompt need not do twice. A
recording reads such a tensor where it lay, and so holds all that it used, however many others are made meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps

import torch

_held: ContextVar[list | None] = ContextVar("held", default=None)


def remembered(maxsize: int) -> Callable:
    """`functools.lru_cache` for a function that makes tensors; they are also of use where gradients are recorded."""

    def decorate(function: Callable) -> Callable:
        @lru_cache(maxsize=maxsize)
        def made(*args):
            with torch.inference_mode(False):
                return function(*args)

        @wraps(function)
        def remember(*args):
            found, held = made(*args), _held.get()
            if held is not None:
                held.append(found)
            return found

        remember.cache_info, remember.cache_clear = made.cache_info, made.cache_clear
        return remember

    return decorate


@contextmanager
def holding(found: list) -> Iterator[None]:
    """For the length of a block: what is made or found again is put into a list as well, and lives as long as that."""
    token = _held.set(found)
    try:
        yield
    finally:
        _held.reset(token)


@remembered(64)
def numbers_on(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Numbers of the host on a device: long [n]."""
    return torch.tensor(numbers, dtype=torch.long, device=device)
