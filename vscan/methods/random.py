"""Random: a uniformly random subset of the tokens, the baseline that a method has to beat."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..select.remembered import remembered
from ..select.scan import top
from .base import Kept, Method, Views

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its step and its two multipliers, as signed 64-bit integers.
STEP = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def shift_right(bits: Tensor, by: int) -> Tensor:
    """Logical shift of int64, which the >> of signed integers is not: the sign bits that it drags in are cut off."""
    return (bits >> by) & (2 ** (64 - by) - 1)


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection of int64 whose every output bit depends on every input bit."""
    bits = (bits ^ shift_right(bits, 30)) * MULTIPLIERS[0]
    bits = (bits ^ shift_right(bits, 27)) * MULTIPLIERS[1]
    return bits ^ shift_right(bits, 31)


def stream(state: Tensor, num: int) -> Tensor:
    """The first `num` numbers that SplitMix64 gives from each state: int64 [V] -> int64 [V, num]."""
    steps = torch.arange(1, num + 1, device=state.device) * STEP
    return mix(state.unsqueeze(1) + steps)


@remembered(maxsize=4)
def position_weights(num: int, device: torch.device) -> Tensor:
    """A fixed odd number per position, int64 [1, num]; cached, because making them costs more than using them."""
    return stream(torch.zeros(1, dtype=torch.long, device=device), num) | 1


def content_keys(pixel_values: Tensor) -> Tensor:
    """One integer per view that its pixel values determine: [V, ...] of any float dtype -> int64 [V].

    A sum of the bits of every value, each times a fixed odd weight, modulo 2**64: integers, so it is exact in whatever
    order a device adds, and one changed value always changes it.
    """
    bits = pixel_values.flatten(1).float().view(torch.int32).long()  # V P
    return (bits * position_weights(bits.shape[1], bits.device)).sum(dim=1)


@dataclass(frozen=True)
class Random(Method):
    """A random subset per view, a function of its pixel values and the seed: the same in every batch and every run.

    No random number generator is read or changed. Pixel values are taken as the encoder gets them, so an image may
    have one subset in fp16 and another in fp32.

    Args:
        seed: another subset for every image.
    """

    seed: Annotated[int, (0, 9223372036854775807)] = 0

    def encode(self, views: Views, num: int) -> Kept:
        numbers = stream(content_keys(views.pixels) + self.seed, views.features.shape[1])
        return Kept(top(numbers, num).sort(dim=-1).values)

    def scores(self, rows: Tensor) -> Tensor:
        """A random rank per column in [0, 1), the same for all rows: [B, H, L] -> [B, L] fp32.

        It is a function of the seed and of the column counted from the end of the row, so that padding on the left,
        which a batch adds, changes nothing; padding on the right would.
        """
        numbers = stream(torch.full((1,), self.seed, device=rows.device), rows.shape[-1]).flip(-1)
        # The upper 24 bits, which fp32 holds exactly.
        return (shift_right(numbers, 40).float() / 2**24).expand(rows.shape[0], -1)
