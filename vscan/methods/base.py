"""What a method is given, and what it may say: the only things an author of a new method has to know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..fields import fields_of


@dataclass(frozen=True)
class Views:
    """The vision encoder's view of some images: one view is one image, crop or frame.

    Args:
        pixel_values: [V, ...], what the encoder saw.
        features: [V, N, C], the encoder's output at the layer that the model reads, without [CLS], before the
            projector.
        rows: {layer as the method wrote it: [V, N] fp32}, attention of [CLS] to the patches, mean over heads; in a
            tower without [CLS], the attention that each token receives from all of its view.
        grid: (height, width) in tokens, N = height * width.
        project: the model's projector, [V, n, C] -> [V, n, D]; where that is a part of the encoder, the identity.
    """

    pixel_values: Tensor
    features: Tensor
    rows: dict[int, Tensor]
    grid: tuple[int, int]
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to reduce visual tokens: a frozen dataclass whose fields are its hyper-parameters.

    The fields become keywords of `vscan.reduce` and flags of the command line; their annotations, such as `int | None`
    or `Annotated[float, (0, 1)]`, are checked (`vscan.fields`). Selection must run on the tensors' own
    device without reading them back, and must depend on one view alone, so that a batch equals its rows run alone.
    """

    # The one resolution (height, width) to which the method's authors fixed any-resolution checkpoints in the original
    # format, without unpadding and newlines; None leaves the checkpoint's way.
    anyres_resolution: ClassVar[tuple[int, int] | None] = None

    def __post_init__(self):
        """Raise ValueError for a hyper-parameter of another kind or range than its annotation; numpy's become plain."""
        for field in fields_of(type(self)):
            object.__setattr__(self, field.name, field.check(getattr(self, field.name)))

    @property
    def cls_layers(self) -> tuple[int, ...]:
        """Vision layers whose row (`Views.rows`) `encode` needs; negative ones count from the end, as in Python."""
        return ()

    def check(self, num_layers: int) -> None:
        """Raise ValueError if the hyper-parameters do not fit a vision encoder of `num_layers` layers."""
        for layer in self.cls_layers:
            if not -num_layers <= layer < num_layers:
                raise ValueError(f"{type(self).__name__}: expected one of {num_layers} vision layers, got {layer}")

    def encode(self, views: Views, num: int) -> tuple[Tensor, Tensor]:
        """Reduce every view to `num` tokens, `num` < N.

        Returns:
            values [V, num, D], what the decoder will see, and slots [V, num] long, ascending: the placeholder (in
            raster order) whose position each token takes.
        """
        raise ValueError(f"{type(self).__name__} reduces nothing after the vision encoder; leave visual_tokens out")

    def scores(self, rows: Tensor) -> Tensor:
        """Rank tokens in the decoder, from the attention of the last prompt token.

        Args:
            rows: [B, H, L] fp32, softmax over the whole causal row.

        Returns:
            [B, L] fp32; the largest visual ones are kept. Default: the mean over heads (VScan, section 4).
        """
        return rows.mean(dim=1)


def encode_in_place(method: Method, views: Views, num: int) -> tuple[Tensor, Tensor]:
    """Let a method reduce views, and lay its tokens out at their slots.

    Args:
        num: tokens kept of every view, fewer than N.

    Returns:
        [V, N, D] in raster order, a kept token in its slot and zeros in all others; and which slots are kept, bool
        [V, N].
    """
    values, slots = method.encode(views, num)
    num_views, _, width = values.shape
    laid_out = values.new_zeros((num_views, views.features.shape[1], width))
    kept = torch.zeros(laid_out.shape[:2], dtype=torch.bool, device=values.device)
    rows, slots = torch.arange(num_views, device=values.device).unsqueeze(1), slots.to(values.device)
    return laid_out.index_put_((rows, slots), values), kept.scatter_(1, slots, True)
