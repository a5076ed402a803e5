"""Pictures from files and from base64, and the resize that published results rest on. Imports no torch."""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..eval.questions import image_file

STEEPEST = 200  # proportion of a picture's sides
DEEPEST = 65535  # the largest value of 16 bits; 257 times that of 8
AT_MOST_16_BITS = ("PNG", "PPM")  # formats in which Pillow's mode "I" cannot hold more


class UnfitPicture(ValueError):
    """A whole picture that no model should see, because of its sides or its values."""


def check_sides(width: int, height: int) -> None:
    """Raise UnfitPicture for a picture more than 200 times as long as wide, or without pixels."""
    if not 0 < max(width, height) <= STEEPEST * min(width, height):
        raise UnfitPicture(
            f"expected a picture at most {STEEPEST} times as long as wide, got {width} x {height} pixels"
        )


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8, any other as it is. Pillow would make white of whatever is above 255.

    Raises:
        UnfitPicture: for floats, and integers of 32 bits unless their values tell that 16 are meant.
    """
    if image.mode == "F":
        raise UnfitPicture("expected a picture of 8 or 16 bits a channel, got mode 'F', floats of an unknown range")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > DEEPEST or (high < 256 and image.format not in AT_MOST_16_BITS):
            problem = f"got mode 'I', values of an unknown range: {low} to {high}"
            raise UnfitPicture(f"expected a picture of 8 or 16 bits a channel, {problem}")
    elif not image.mode.startswith("I;16"):
        return image
    import numpy as np  # help and refusals do without

    return Image.fromarray(((np.asarray(image).astype(np.int32) + 128) // 257).astype(np.uint8))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as LLaVA has it: transparency is dropped, not blended, and an EXIF orientation is ignored.

    Raises:
        UnfitPicture: for grey levels whose range cannot be known.
    """
    image = _of_eight_bits(image)
    if "transparency" in image.info:  # it would survive here, and make an image processor blend the picture with white
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """RGB as qwen-vl-utils has it: RGBA is blended with white; any other transparency is dropped.

    Raises:
        UnfitPicture: for grey levels whose range cannot be known.
    """
    if image.mode != "RGBA":
        return to_rgb(image)
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def read_image(source: str | Path | io.BytesIO, convert: Callable[[Image.Image], Image.Image] = to_rgb) -> Image.Image:
    """Read a whole picture.

    Args:
        source: a file's path, or its content.
        convert: makes it RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or not a whole one, or one that no model should see.
    """
    place = "the embedded picture" if isinstance(source, io.BytesIO) else source
    try:
        with Image.open(source) as image:
            check_sides(*image.size)  # known before the pixels are
            return convert(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"expected an image file at {place}, found nothing there") from None
    except UnfitPicture as error:
        raise UnfitPicture(f"{place}: {error}") from None
    except Exception as error:  # Pillow's readers report a broken file by errors of every kind
        raise ValueError(f"expected a complete image file that Pillow can read at {place}: {error}") from error


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns `image` resized by Pillow's bicubic filter, along the width first.

    Pillow 13 may resize along the height first, which changes pixels by some grey levels; before it was always this
    order, and published results rest on it.
    """
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@dataclass(frozen=True)
class ImageFolder:
    """Where a question's picture is: in a file under `folder`, at the question's `image`."""

    folder: str

    def __call__(self, question: dict) -> str | None:
        """The file's path; None for a question without a picture.

        Raises:
            ValueError: for a name that leaves the folder.
        """
        return str(image_file(self.folder, question["image"])) if question.get("image") else None


def embedded_image(question: dict) -> io.BytesIO | None:
    """Where a question's picture is: in the question, as base64 under `image_base64`; None where it has none.

    Raises:
        ValueError: for text that is no base64.
    """
    text = question.get("image_base64")
    if not text:
        return None
    try:
        return io.BytesIO(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError(f"expected a picture as base64, got {text[:20]!r}: {error}") from error
