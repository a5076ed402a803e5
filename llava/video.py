"""Clips and pictures become pixels as Video-LLaVA's checkpoints of either format take them. Needs no torchvision.

The original format normalises a clip's frames at their own size, and resizes these floats without antialiasing; a
picture is resized by another filter, and normalised last. Hugging Face's processor treats both alike: Pillow's bicubic
filter on bytes, then a crop, then the normalisation. The published code mirrors a clip by the toss of a coin; here none
is mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from llava.mm_utils import expand2square, load_image_processor
from vscan.io.frames import read_frames
from vscan.io.images import to_rgb

NUM_FRAMES = 8
SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def choose_frames(number: int, rate: float = 0.0) -> list[int]:
    """Which frames of a clip are seen: eight at equal distances, the first and the last among them, rounded down.

    Args:
        number: frames that it has; where there are fewer than eight, some are seen twice.
        rate: frames in a second; nothing depends on it, so that time passes unevenly where the rate does.
    """
    return [place * (number - 1) // (NUM_FRAMES - 1) for place in range(NUM_FRAMES)]


def read_clip(file: str | Path) -> list[Image.Image]:
    """The eight frames of a clip that are seen, RGB, as they are stored: a rotation that the file asks for is not done.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError: there is no such file.
        ValueError: it is not a video or not a whole one, or its frames differ in size.
    """
    frames, _ = read_frames(file, choose_frames, timed=False)
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"{file}: expected frames of one size, got {' and '.join(f'{w} x {h}' for w, h in sizes)}")
    return frames


def crop(pixels: Tensor) -> Tensor:
    """The middle of [..., H, W], 224 x 224; half a pixel goes to the even side, as Python rounds."""
    top, left = (round((side - SIDE) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + SIDE, left : left + SIDE]


@dataclass(frozen=True)
class ClipProcessor:
    """From pictures and frames to what the towers take.

    Args:
        stock: the image processor of a checkpoint in Hugging Face's format; None is the original format.
    """

    stock: Any = None
    image_mean: tuple[float, ...] = MEAN
    image_std: tuple[float, ...] = STD

    @classmethod
    def of(cls, folder: str | Path) -> ClipProcessor:
        """That of a checkpoint's folder; one in the original format has no preprocessor_config.json."""
        if not (Path(folder) / "preprocessor_config.json").is_file():
            return cls()
        stock = load_image_processor(folder)
        return cls(stock, tuple(stock.image_mean), tuple(stock.image_std))

    @property
    def size(self) -> dict[str, int]:
        """As image processors of transformers have it."""
        return {"shortest_edge": SIDE}

    @property
    def crop_size(self) -> dict[str, int]:
        """As image processors of transformers have it."""
        return {"height": SIDE, "width": SIDE}

    def video(self, frames: Sequence[Image.Image]) -> Tensor:
        """Returns the frames of a clip, of one size, as float32 [3, len(frames), 224, 224]."""
        if self.stock is not None:
            return self.stock(list(frames), return_tensors="pt")["pixel_values"].transpose(0, 1).contiguous()
        # One by one: at their own size, as floats, they take twelve times the memory of their bytes.
        return torch.stack([self._frame(frame) for frame in frames], dim=1)

    def image(self, image: Image.Image, pad: bool = False) -> Tensor:
        """Returns a picture as float32 [3, 224, 224].

        Args:
            image: what is not RGB becomes it as in `load_image`.
            pad: make a square of it first, in the middle of the mean colour; else its ends are cut away.

        Raises:
            ValueError: for a picture that is too large to pad.
        """
        image = to_rgb(image)
        if pad:
            image = expand2square(image, tuple(int(mean * 255) for mean in self.image_mean))
        if self.stock is not None:
            return self.stock([image], return_tensors="pt")["pixel_values"][0]
        pixels = _floats(image)
        height, width = pixels.shape[1:]
        size = [int(SIDE * side / min(height, width)) for side in (height, width)]
        if size != [height, width]:
            pixels = interpolate(pixels[None], size=size, mode="bicubic", align_corners=False)[0]
        return self._normalise(crop(pixels)).contiguous()

    def _frame(self, frame: Image.Image) -> Tensor:
        pixels = self._normalise(_floats(frame))
        height, width = pixels.shape[1:]
        # The ratio of the sides comes first: 224 times it may be another number than 224 * long / short.
        pairs = ((height, width), (width, height))
        size = [SIDE if side <= other else math.floor(side / other * SIDE) for side, other in pairs]
        # A channel as a picture of its own: torch would add up in another order where they come together.
        return crop(interpolate(pixels[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.image_mean, self.image_std))
        return (pixels - mean) / std


def _floats(image: Image.Image) -> Tensor:
    """RGB bytes as float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
