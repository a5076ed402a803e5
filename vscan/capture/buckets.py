"""Which prompts share a recording: pure functions on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..methods.base import Method
from ..plan import Fitted, Plan
from ..prompt import VisualPrompt

TEXT, ANSWER, TOKENS = 32, 64, 32  # what lengths of text, of answers, and numbers read from a picture are rounded up to


class Uncaptured(Exception):
    """A prompt that fits no bucket; its text is the reason, as `stats()` gives it."""


def rounded(number: int, step: int) -> int:
    """The smallest multiple of `step`, one at least, that is not below `number`."""
    return max(1, -(-number // step)) * step


@dataclass(frozen=True)
class Bucket:
    """Prompts that one recording serves.

    Args:
        num_views, num_visual, num_kept: per item, as a `VisualPrompt` has them; `num_kept` is a bound where it depends
            on the picture.
        has_kept: whether some placeholders hold no token.
        text: the most tokens of text of an item, rounded up.
        length: columns of the whole prompt, padded at the left.
        room: tokens of the answer, rounded up.
        axes: of the positions, 0 or 3 (M-RoPE).
        width, dtype, device: of the embeddings.
    """

    num_views: tuple[int, ...]
    num_visual: tuple[int, ...]
    num_kept: tuple[int, ...]
    has_kept: bool
    text: int
    length: int
    room: int
    axes: int
    width: int
    dtype: object
    device: object

    @property
    def batch(self) -> int:
        return len(self.num_visual)

    @property
    def num_valid(self) -> list[int]:
        """The most columns per item that hold a token, or a placeholder."""
        return [number + self.text for number in self.num_visual]

    def prompt(self, visual, kept) -> VisualPrompt:
        """The prompt that stands for all of them; the tensors are bool [B, length]."""
        lists = [list(numbers) for numbers in (self.num_views, self.num_visual, self.num_kept)]
        return VisualPrompt(visual, *lists, self.num_valid, kept if self.has_kept else None, is_bound=True)

    def plan(self, fitted: Fitted) -> Plan:
        """What becomes of it: the lengths of a recording's layers. Reads no device."""
        visual = torch.empty(self.batch, self.length, dtype=torch.bool, device="meta")
        return Plan.of(fitted, self.prompt(visual, visual))


def bucket_of(prompt: VisualPrompt, left: Sequence[int], room: int, **embeddings) -> Bucket:
    """The bucket of a prompt.

    Args:
        left: placeholders per item that hold a token when layer 0 runs.
        room: the most tokens that the answer may have.
        embeddings: `axes`, `width`, `dtype` and `device`.
    """
    most, length = max(prompt.num_visual), prompt.visual.shape[1]
    text = max(valid - number for valid, number in zip(prompt.num_valid, prompt.num_visual, strict=True))
    text = rounded(max(text, length - most), TEXT)
    beside = 0
    if prompt.num_kept is None:
        beside = TOKENS  # what an item has less than the bound is made up by padding, as all that it has less
        left = [
            number if here == number else min(rounded(here, TOKENS), number - 1)
            for here, number in zip(left, prompt.num_visual, strict=True)
        ]
    return Bucket(
        num_views=tuple(prompt.num_views),
        num_visual=tuple(prompt.num_visual),
        num_kept=tuple(left),
        has_kept=prompt.kept is not None,
        text=text,
        length=most + text + beside,
        room=rounded(room, ANSWER),
        **embeddings,
    )


def check_bound(exact: Plan, bound: Plan, method: Method) -> None:
    """Check that every stage keeps as many tokens of a prompt as it does of its bucket.

    Raises:
        Uncaptured: where that depends on the picture.
    """
    if exact.stages[0].num_visual != bound.stages[0].num_visual and type(method).prune is not Method.prune:
        raise Uncaptured("how many tokens a method with a pruning of its own is given depends on the picture")
    for of_prompt, of_bucket in zip(exact.stages[1:], bound.stages[1:], strict=True):
        left = (of_prompt.num_visual, of_bucket.num_visual)
        if of_prompt.num != of_bucket.num or (of_prompt.num is not None and left[0] != left[1]):
            raise Uncaptured(f"what layer {of_prompt.start} keeps depends on the picture")


def lengths_of(bound: Plan, room: int) -> list[int]:
    """Columns of every layer's cache."""
    return [stage.length + room for stage in bound.of_layers]


def cache_numel(lengths: Sequence[int], batch: int, num_heads: int, head_dim: int) -> int:
    """Numbers that a cache of such layers holds, keys and values."""
    return 2 * batch * num_heads * head_dim * sum(lengths)
