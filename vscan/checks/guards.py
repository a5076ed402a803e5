"""What is checked of every prompt and every decoded token under a reduction.

The cache that goes out is the one that came in; after a prompt every layer holds what it was given; a decoded token
grows the cache by one and finds the prompt's state on it; pictures that were encoded reach the decoder, and are finite.
All of it is asked of the host; only whether features are finite is read from the device, once a prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import Cache

from ..cache import Cached, Force, PromptState
from ..compat import LibraryChanged, cache_of, cache_size, forgotten_length, held, take_cache
from ..prompt import VisualPrompt


@dataclass
class Generation:
    """What is known of the `generate` call under way.

    Args:
        input_ids: long [B, L], its prompts, or None. Without a cache every step brings the answer so far as well, and
            the query must stay the last token of the prompt.
        makes_cache: the cache is its own, and static: as long as the whole prompt and the answer in every layer.
        encoded: pictures were encoded under a reduction, and the decoder has not been given them yet.
        reduced: a prompt was reduced, so that there is a cache which holds its state.
        keywords: those of `generate`; None where another call is under way.
        ended: whether the call is over.
    """

    input_ids: Tensor | None
    makes_cache: bool = False
    encoded: bool = False
    reduced: bool = False
    keywords: dict | None = None
    ended: bool = False


generation: ContextVar[Generation | None] = ContextVar("generation", default=None)


@contextmanager
def generating(
    input_ids: Tensor | None, maker: nn.Module | None = None, keywords: dict | None = None
) -> Iterator[Generation]:
    """While a `generate` call is under way: what is encoded and decoded in it knows its prompts, where they came.

    Args:
        maker: the model, where it makes a static cache in this call.
        keywords: of `generate`.
    """
    call = Generation(input_ids, maker is not None, keywords=keywords)
    token = generation.set(call)
    try:
        with nullcontext() if maker is None else forgotten_length(maker):
            yield call
    finally:
        call.ended = True
        generation.reset(token)


def check_dense(cache: Cache | None, num_new: int, force: Force) -> bool:
    """Check that a call which brings no pictures and follows no reduced prompt should be one.

    Args:
        num_new: tokens that it brings.
        force: of the reduction; a dense prompt's cache bears it.

    Returns:
        Whether it begins a prompt; for one token and a static cache, which counts on the device, that is not known.

    Raises:
        LibraryChanged: if pictures were encoded for it, or if it was to follow a reduced prompt.
        ValueError: for a cache that was not filled under this reduction.
    """
    seen = 0 if cache is None else cache.get_seq_length()
    if not isinstance(seen, int) and num_new == 1:
        return False
    call = generation.get()
    if call is not None and call.encoded:
        raise LibraryChanged("pictures that were encoded to be handed to the decoder", "a prompt without them")
    if call is not None and call.reduced and cache is not None and int(seen) == 0:
        raise LibraryChanged("the cache that holds the reduced prompt at every later step", "an empty cache")
    if isinstance(seen, int) and seen > 0 and getattr(cache, "filled_under", None) is not force:
        raise ValueError(
            f"expected a cache that was filled under this reduction, got one of {seen} columns from elsewhere: what it "
            "holds may be a reduced prompt that was copied or converted, which cannot be told"
        )
    return int(seen) == 0


def check_prefill(cache: Cache, state: PromptState, num_layers: int) -> Cached:
    """Check that every layer's cache holds the prompt as that layer was given it.

    Returns:
        What the cache holds, for statistics; of a static cache, which counts on the device, columns as given.

    Raises:
        LibraryChanged: naming the layer.
    """
    lengths, starts = [], state.by_start
    for start, end in pairwise([*starts, num_layers]):
        expected = starts[start].length
        lengths += [expected] * (end - start)
        for layer in range(start, end):
            got, exact = held(cache, layer)
            if got != expected if exact else got < expected:
                raise LibraryChanged(f"{expected} columns in the cache of layer {layer} after the prompt", str(got))
    return Cached(lengths, *cache_size(cache))


def check_step(cache: Cache, before: int, num_new: int) -> None:
    """Check that the first layer's cache grew by what came; a static cache counts on the device and is not asked."""
    got, exact = held(cache, 0)
    if exact and got != before + num_new:
        raise LibraryChanged(f"{before + num_new} columns in the cache of layer 0 after {num_new} more", str(got))


def check_finite(finite: Tensor | None, dtype: torch.dtype) -> None:
    """Check that visual features hold numbers; reads the device, where a prompt is described.

    Args:
        finite: bool [], whether all are finite; None where that is not known.
        dtype: theirs.

    Raises:
        ValueError: naming the dtype.
    """
    if finite is not None and not finite.is_meta and not finite:
        raise ValueError(
            f"expected visual features that are finite, got NaN or infinity in {str(dtype).removeprefix('torch.')}: "
            "load the model in bfloat16 or float32, or look at the pixels"
        )


def check_handed_out(module: nn.Module, prompt: VisualPrompt, kwargs: dict, output) -> None:
    """Check that a shell let the reduced decoder run, on the cache that it was given, and returns that cache.

    Args:
        kwargs, output: of the shell's call.

    Raises:
        RuntimeError: if the decoder did not run.
        LibraryChanged: for another cache.
    """
    shell = type(module).__name__
    if not prompt.entered:
        raise RuntimeError(
            f"the reduced decoder of {shell} was not entered: something replaced the forward of its language model, "
            "and nothing would be reduced in it"
        )
    given, filled = take_cache(dict(kwargs)), None if prompt.cache is None else prompt.cache()
    if given is not None and given is not filled and not prompt.is_captured:
        raise LibraryChanged(f"{shell} to hand its cache to the decoder", "another cache, or none, in the decoder")
    is_lost = prompt.cache is not None and filled is None
    if is_lost or cache_of(output) is not filled:
        raise LibraryChanged(f"the decoder's cache in what {shell} returns", "another cache, or none")
