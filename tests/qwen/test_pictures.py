"""Qwen2.5-VL's pixels of pictures of every kind: transparency is dropped, RGBA alone is blended, frames likewise."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from qwen.images import UNIT, fit, process_image
from qwen.video import process_frames
from vscan.io.images import on_white, read_image

PROCESSOR = Qwen2VLImageProcessorPil()
BUDGET = (4 * UNIT, 1280 * UNIT)


def noise(width=84, height=56):
    return Image.frombytes("RGB", (width, height), np.random.default_rng(0).bytes(width * height * 3))


def pixels_of(image):
    return process_image(image, PROCESSOR, BUDGET)[0]


def levels(pixels):
    """The bytes that patches [n, 3 * 2 * 14 * 14] were made of, one of the two equal frames."""
    mean, std = (torch.tensor(getattr(PROCESSOR, f"image_{name}")).view(3, 1) for name in ("mean", "std"))
    return ((pixels.view(len(pixels), 3, 2, -1)[:, :, 0] * std + mean) * 255).round().int()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "P bytes"])
def test_a_transparent_colour_is_not_blended(tmp_path, mode):
    image = noise().quantize(16) if mode[0] == "P" else noise().convert(mode)
    clear = bytes(16) if mode == "P bytes" else image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=clear)
    plain = Image.fromarray(np.asarray(image.convert("RGB")))
    read = read_image(tmp_path / "a.png", on_white)
    assert torch.equal(pixels_of(read), pixels_of(plain))
    # Of 56 x 84 pixels nothing is resized: the bytes are those of the file.
    assert sorted(levels(pixels_of(read)).flatten().tolist()) == sorted(np.asarray(plain).flatten().tolist())


def test_pictures_that_pillow_opened_give_the_same_pixels(tmp_path):
    noise().save(tmp_path / "a.png", transparency=noise().getpixel((0, 0)))
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(pixels_of(opened), pixels_of(noise()))
        assert torch.equal(pixels_of(opened.convert("RGB")), pixels_of(noise()))
        clear = opened.convert("RGB")
    clear.putalpha(0)
    assert levels(pixels_of(clear)).min() == 255


def test_a_picture_of_16_bits_has_the_pixels_of_the_one_of_8(tmp_path):
    grey = noise().convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert torch.equal(pixels_of(read_image(tmp_path / "a.png", on_white)), pixels_of(grey))


def test_frames_are_read_as_pictures_are(tmp_path):
    frame = noise(336, 308)  # of a size that four frames keep
    frame.save(tmp_path / "a.png", transparency=frame.getpixel((0, 0)))
    with Image.open(tmp_path / "a.png") as opened:
        given = process_frames([opened, opened.convert("RGB"), frame.convert("RGBA"), frame], PROCESSOR)
    assert torch.equal(given[0], process_frames([frame] * 4, PROCESSOR)[0])


def test_a_steep_picture_is_refused_alike():
    for call in (lambda: pixels_of(Image.new("RGB", (60000, 1))), lambda: fit(60000, 1, BUDGET)):
        with pytest.raises(ValueError, match="at most 200 times as long as wide, got 60000 x 1 pixels"):
            call()
