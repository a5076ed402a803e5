"""The frames of clips as views: to the decoder each is 1 + N tokens, [CLS] first, and methods select from the N others.

The [CLS] token of a frame is kept beside what the method keeps, or dropped (`frame_cls`). A frame is reduced on its own
or, where one budget is for a whole clip (`group="image"`), its frames stand one below the other as a single view.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..methods.base import Views
from ..plan import Fitted
from .encoded import EncodedImages
from .family import reduce_views


def whole_clips(features: Tensor, num_frames: int) -> EncodedImages:
    """Clips of which nothing is dropped, from their frames in order, projected: [V, 1 + N, D]."""
    number, size = len(features) // num_frames, features.shape[1] * num_frames
    return EncodedImages(
        pooler_output=list(features.reshape(number, size, -1)),
        num_views=[num_frames] * number,
        num_kept=[size] * number,
        apart=[is_cls(num_frames, features.shape[1], features.device)] * number,
        num_apart=[num_frames] * number,
    )


def reduced_clips(fitted: Fitted, views: Views, num_frames: int) -> EncodedImages:
    """Let a method reduce the frames of clips, which come in order."""
    number, size = len(views.features) // num_frames, views.grid[0] * views.grid[1]
    keeps_cls, is_whole = fitted.frame_cls == "keep", fitted.group == "image"
    pictures = stacked(views, num_frames) if is_whole else views
    tokens, left, num_kept = reduce_views(fitted, pictures, [1 if is_whole else num_frames] * number, num_frames)
    tokens, left = tokens.reshape(number * num_frames, size, -1), left.reshape(-1, size)
    cls = views.project(views.cls.unsqueeze(1)).to(tokens.dtype)  # V 1 D
    tokens = torch.cat((cls if keeps_cls else torch.zeros_like(cls), tokens), dim=1)
    left = torch.cat((torch.full_like(left[:, :1], keeps_cls), left), dim=1)
    extra = num_frames if keeps_cls else 0
    return EncodedImages(
        pooler_output=list(tokens.reshape(number, num_frames * (1 + size), -1)),
        kept=list(left.reshape(number, -1)),
        num_views=[num_frames] * number,
        num_kept=None if num_kept is None else [each + extra for each in num_kept],
        apart=[is_cls(num_frames, 1 + size, left.device)] * number if keeps_cls else None,
        num_apart=[num_frames] * number if keeps_cls else None,
    )


def is_cls(num_frames: int, size: int, device: torch.device) -> Tensor:
    """Which tokens of a clip are [CLS] tokens: bool [num_frames * size]."""
    return torch.arange(num_frames * size, device=device) % size == 0


def stacked(views: Views, num_frames: int) -> Views:
    """The frames of each clip one below the other, as one view."""
    (height, width), number = views.grid, len(views.features) // num_frames

    def joined(states: Tensor) -> Tensor:
        return states.reshape(number, num_frames * states.shape[1], *states.shape[2:])

    return replace(
        views,
        pixels=views.pixels.unflatten(0, (number, num_frames)),
        features=joined(views.features),
        rows={layer: joined(row) for layer, row in views.rows.items()},
        grid=(num_frames * height, width),
        cls=None,
        text=views.text and views.text[::num_frames],
        keys={},
        queries={},
    )
