"""Pictures from files and from base64, and the resize that published results rest on. Imports no torch."""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .questions import image_file


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as LLaVA has it: transparency is dropped, not blended, and an EXIF orientation is ignored."""
    return image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """RGB as qwen-vl-utils has it: RGBA is blended with white; any other transparency is dropped."""
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
        ValueError: it is not a picture, or not a whole one.
    """
    place = "the embedded picture" if isinstance(source, io.BytesIO) else source
    try:
        with Image.open(source) as image:
            return convert(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"expected an image file at {place}, found nothing there") from None
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
