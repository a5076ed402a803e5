"""Encoded images, and what belongs to them on their way through transformers' `generate` to the decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        finite: bool [], whether all that the encoder gave is; read once, where a prompt is described.
    """

    kept: list | None = None
    num_views: list | None = None
    num_kept: list | None = None
    finite: Tensor | None = None

    def __post_init__(self):
        super().__post_init__()
        self.encoded = list(self.pooler_output)  # `generate` repeats them for beams, and says nothing

    def select(self, indices: Sequence[int]) -> "EncodedImages":
        """Some of these images, in another order or several times."""
        lists = {name: getattr(self, name) for name in ("kept", "num_views", "num_kept")}
        chosen = {name: None if found is None else [found[i] for i in indices] for name, found in lists.items()}
        return EncodedImages(pooler_output=[self.encoded[i] for i in indices], **chosen, finite=self.finite)

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
    """

    name: str
    pixels: str
    encode: Callable[..., EncodedImages] | None
    adopt: Callable
