"""Encoded images, and what belongs to them on their way through transformers' `generate` to the decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compat import BaseModelOutputWithPooling, LibraryChanged


@dataclass
class EncodedImages(BaseModelOutputWithPooling):
    """Images encoded under a reduction; what travels with them through `generate` to the shell.

    Args:
        pooler_output: a list of [M_i, D], one tensor an image, in raster order; zeros where a token is dropped.
        kept: a list of bool [M_i], which of them are left; None where all are.
        num_views: a list, views (images, crops, steps in time) of each.
        num_kept: a list, tokens of each that are left; None where that depends on the picture.
        apart: a list of bool [M_i], tokens that are left and belong to no grid, the [CLS] of frames; None for none.
        num_apart: a list, how many these are in each; None for none.
        finite: bool [], whether all that the encoder gave is; read once, where a prompt is described.
    """

    kept: list | None = None
    num_views: list | None = None
    num_kept: list | None = None
    apart: list | None = None
    num_apart: list | None = None
    finite: Tensor | None = None

    def __post_init__(self):
        super().__post_init__()
        self.encoded = list(self.pooler_output)  # `generate` repeats them for beams, and says nothing

    def select(self, indices: Sequence[int]) -> "EncodedImages":
        """Some of these images, in another order or several times."""
        lists = {name: getattr(self, name) for name in ("kept", "num_views", "num_kept", "apart", "num_apart")}
        chosen = {name: None if found is None else [found[i] for i in indices] for name, found in lists.items()}
        return EncodedImages(pooler_output=[self.encoded[i] for i in indices], **chosen, finite=self.finite)

    @classmethod
    def mixed(cls, parts: Sequence[tuple["EncodedImages", int]]) -> "EncodedImages":
        """Images of several encodings, each named by its encoding and its number there."""

        def lists(name: str, filled: Callable[["EncodedImages", int], Any]) -> list | None:
            found = [None if getattr(part, name) is None else getattr(part, name)[number] for part, number in parts]
            if all(each is None for each in found):
                return None
            return [filled(*pair) if each is None else each for pair, each in zip(parts, found, strict=True)]

        def flags(value: bool) -> Callable[["EncodedImages", int], Tensor]:
            return lambda part, number: torch.full_like(part.encoded[number][:, 0], value, dtype=torch.bool)

        return cls(
            pooler_output=[part.encoded[number] for part, number in parts],
            kept=lists("kept", flags(True)),
            num_views=[part.num_views[number] for part, number in parts],
            num_kept=None if any(part.num_kept is None for part, _ in parts) else lists("num_kept", lambda *_: 0),
            apart=lists("apart", flags(False)),
            num_apart=lists("num_apart", lambda *_: 0),
        )

    def expanded(self) -> "EncodedImages":
        """The same images as `pooler_output` has them now, with all that belongs to each."""
        place = {id(features): number for number, features in enumerate(self.encoded)}
        try:
            return self.select([place[id(features)] for features in self.pooler_output])
        except KeyError as error:
            raise LibraryChanged("the pictures that were encoded, in any order", "others") from error

    def size(self, dim: int) -> int:
        """How many there are: asked of what stands in for pixels before transformers 5.18."""
        return len(self.pooler_output)


def all_finite(features: list[Tensor]) -> Tensor:
    """Whether all values of some tensors are finite, bool []; reads nothing."""
    return torch.stack([part.isfinite().all() for part in features]).all()


@dataclass(frozen=True)
class Modality:
    """Images or videos, as a shell takes them.

    Args:
        name: "image" or "video": the model has a `get_<name>_features` and a `<name>_token_id`.
        pixels: the keyword that brings them.
        encode: from what the model's own `get_<name>_features` takes, by keyword, to an `EncodedImages`.
        adopt: from what the model gave for images without this reduction to an `EncodedImages`, or None to refuse it.
        shown: what the shell is given of an `EncodedImages`, where it wants its features in another form.
    """

    name: str
    pixels: str
    encode: Callable[..., EncodedImages] | None
    adopt: Callable
    shown: Callable[[EncodedImages], Any] = lambda images: images
