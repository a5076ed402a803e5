"""The cache that holds a reduced prompt: what is known of the prompt hangs on it, follows its rows, and ends with it.

Layers hold as many columns as they were given, so that nothing but the decoder loop under the same reduction can go on
from such a cache. Used otherwise it would be answered wrongly without a word, and says so instead.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import Cache, StaticCache

from .classes import mixed, original_of
from .compat import held, is_static
from .plan import Plan
from .prompt import Segment


@dataclass(frozen=True)
class Cached:
    """What a cache held after a prompt: columns in every layer, bytes of all keys and values, and their dtype; None
    where it keeps them in another form."""

    lengths: list[int]
    num_bytes: int | None
    dtype: torch.dtype | None


@dataclass
class PromptState:
    """What decoding has to know of a reduced prompt; it hangs on the cache, never on a module.

    Args:
        length: columns of the full prompt.
        next_position: long [B or 1, 1], the position in the full prompt of what follows it.
        segments: from layer 0 up; of two with the same start the later one counts.
        cached: what the cache held; None where there was none, or before the prompt has run.
        captured: whether recorded graphs ran it.
        eager: why they did not, in full or in part; None where they did, or were not asked for.
    """

    length: int
    next_position: Tensor
    segments: list[Segment]
    cached: Cached | None = None
    captured: bool = False
    eager: str | None = None

    @property
    def by_start(self) -> dict[int, Segment]:
        """The segments by their first layers."""
        return {segment.start: segment for segment in self.segments}

    def select(self, rows: Tensor) -> "PromptState":
        """What is known of some rows, in another order or several times; counts on the host stay those of the prompt.

        Args:
            rows: long [B'].
        """

        def chosen(states: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if states is None else states.index_select(dim, rows.to(states.device))

        def positions_of(states: Tensor, dim: int) -> Tensor:  # [B or 1, ...]
            return states if states.shape[dim] < len(self.segments[0].columns) else chosen(states, dim)

        segments = [
            replace(
                segment,
                columns=chosen(segment.columns),
                valid=chosen(segment.valid),
                visual=chosen(segment.visual),
                positions=positions_of(segment.positions, -2),
                removed=chosen(segment.removed),
            )
            for segment in self.segments
        ]
        return replace(self, next_position=positions_of(self.next_position, 0), segments=segments)

    def repeat(self, times: int) -> "PromptState":
        """What is known of the same rows, each `times` times in a row."""
        rows = torch.arange(len(self.segments[0].columns), device=self.next_position.device)
        return self.select(rows.repeat_interleave(times))

    def positions_after(self, num_cached: int | Tensor, num_new: int) -> Tensor:
        """Positions in the full prompt of tokens that are about to follow.

        Args:
            num_cached: columns that the first layer's cache holds.
            num_new: tokens that follow them.

        Returns:
            Long [B or 1, num_new].
        """
        ahead = torch.arange(num_new, device=self.next_position.device)
        return self.next_position + (num_cached - self.by_start[0].length + ahead)


@dataclass(eq=False)
class Force:
    """Whether a reduction is in force; shared by the reduction and all that it leaves behind, also by their copies.

    Args:
        ended: why it is not, of the prompt that a cache holds; None while it is.
    """

    ended: str | None = None

    def __deepcopy__(self, memo) -> "Force":
        return self

    def check(self) -> None:
        """Raise ValueError where it is not in force any more."""
        if self.ended:
            raise ValueError(
                f"expected a cache that can be gone on from, got one that holds a prompt with reduced visual tokens, "
                f"{self.ended}: run the prompt again"
            )


class ReducedCache:
    """A transformers cache that holds a reduced prompt.

    Modifications:
    - `update` is an error once the reduction is not in force any more;
    - rows that are reordered, selected or repeated take what is known of the prompt with them;
    - `reset` makes it the cache that it was; `crop` may take what was decoded, and no part of the prompt; where either
      is an error the cache is of no more use, and says so;
    - a copy is a cache of its own; it cannot be pickled.
    """

    def update(self, *args, **kwargs):
        self.force.check()
        return super().update(*args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor):
        super().reorder_cache(beam_idx)
        self.visual_prompt_state = self.visual_prompt_state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor):
        super().batch_select_indices(indices)
        self.visual_prompt_state = self.visual_prompt_state.select(indices)

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self.visual_prompt_state = self.visual_prompt_state.repeat(repeats)

    def reset(self):
        super().reset()
        length, is_exact = held(self, 0)
        if is_exact and length:  # before 5.24 a dynamic cache that was reset keeps its columns, as zeros
            self.force = Force("which was reset")
            raise ValueError(
                "expected a static cache to reset, got a dynamic one, whose columns this transformers keeps: "
                "make a new one"
            )
        release(self)

    def crop(self, *args, **kwargs):
        super().crop(*args, **kwargs)
        lengths = {start: segment.length for start, segment in self.visual_prompt_state.by_start.items()}
        left = [int(self.get_seq_length(start)) - length for start, length in lengths.items()]
        if min(left) < 0 or len(set(left)) > 1:
            self.force = Force("which was cropped")
            raise ValueError(
                "expected to crop nothing but what was decoded after a reduced prompt, the same in every layer, got "
                f"{', '.join(map(str, left))} columns more than the prompt in the layers where it gets shorter"
            )

    def __copy__(self):
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict):
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update({name: deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def __reduce_ex__(self, protocol):
        raise ValueError("expected a cache of the dense model to pickle, got one that holds a reduced prompt")


def static_cache(model: nn.Module, plan: Plan, max_new_tokens: int) -> StaticCache:
    """A static cache for one batch of prompts: every layer as long as what it is given of them, and an answer.

    Args:
        model: the model that generates, with the reduction in force.
        plan: of the prompts, what `Reduction.plan` gives.
        max_new_tokens: the longest answer.

    Raises:
        ValueError: for an answer without a token.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    config = model.config.get_text_config(decoder=True)
    cache = StaticCache(config=config, max_cache_len=plan.length + max_new_tokens)
    fit_static(cache, plan, shorten=True)
    return cache


def fit_static(cache: Cache, plan: Plan, shorten: bool) -> None:
    """See to it that the layers of a static cache hold what they are given of prompts; other caches grow.

    Args:
        shorten: take off layers that are as long as the whole prompt and an answer what never reaches them.

    Raises:
        ValueError: for a layer that is too short, which a GPU would find out too late.
    """
    for index, (layer, stage) in enumerate(zip(cache.layers, plan.of_layers, strict=False)):
        if not is_static(layer):
            continue
        if shorten and not layer.is_initialized:
            layer.max_cache_len -= plan.length - stage.length
        if layer.max_cache_len < stage.length:
            raise ValueError(
                f"expected a static cache with room for the {stage.length} columns of the prompt in layer {index}, got "
                f"one of {layer.max_cache_len}: make one with vscan.static_cache, or a longer one"
            )


def hold(cache: Cache, state: PromptState, force: Force) -> None:
    """Hang what is known of a prompt on the cache that is about to hold it."""
    if not isinstance(cache, ReducedCache):
        cache.__class__ = mixed(type(cache), ReducedCache)
    cache.visual_prompt_state, cache.force = state, force


def release(cache: Cache) -> None:
    """Make a cache that was emptied what it was."""
    if isinstance(cache, ReducedCache):
        del cache.visual_prompt_state, cache.force
        cache.__class__ = original_of(type(cache), ReducedCache)


def state_of(cache: Cache | None, num_new: int) -> PromptState | None:
    """The reduced prompt that a cache holds, or None; a cache that was emptied forgets it here.

    Args:
        num_new: tokens that are about to follow.
    """
    if not isinstance(cache, ReducedCache):
        return None
    seen = cache.get_seq_length()
    # A static cache answers with a tensor, and reading it at every step would stall the device.
    if (isinstance(seen, int) or num_new > 1) and int(seen) == 0:
        release(cache)
        return None
    return cache.visual_prompt_state
