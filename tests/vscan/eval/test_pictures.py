"""What becomes of pictures of every kind when they are read: as published, or refused by name before their memory."""

import base64
import io
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vscan.io.images import UnfitPicture, embedded_image, on_white, read_image, to_rgb

CONVERSIONS = pytest.mark.parametrize("convert", [to_rgb, on_white])
RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257


def noise(width, height, mode="RGB"):
    return Image.frombytes(mode, (width, height), np.random.default_rng(0).bytes(width * height * len(mode)))


def grey(values):
    return np.asarray(values)[:, :, None].repeat(3, axis=2)


def save(image, file, **options):
    image.save(file, **options)
    return file


# -------------------------------------------------------------------------------------------------------- grey levels


@CONVERSIONS
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.tif", "<i4"), ("a.pgm", "<u2"), ("a.jp2", "<u2")],
)
def test_a_picture_of_16_bits_is_the_one_of_8(tmp_path, name, dtype, convert):
    read = read_image(save(Image.fromarray(RAMP.astype(dtype)), tmp_path / name), convert)
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), grey(np.arange(256).reshape(16, 16)))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_byte_order_of_16_bits(mode):
    image = Image.frombytes(mode, (16, 16), RAMP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.array_equal(np.asarray(to_rgb(image)), grey(np.arange(256).reshape(16, 16)))


def test_values_between_the_levels_go_to_the_nearer_one():
    values = np.array([[0, 128, 129, 257 + 128, 257 + 129, 65535 - 128, 65535 - 129]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255, 254]


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
    for name in ("a.png", "a.tif", "a.pgm"):
        assert np.asarray(read_image(save(dark, tmp_path / name))).max() == 1


@CONVERSIONS
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.int32([[0, 65536]]), "mode 'I', values of an unknown range: 0 to 65536"),
        (np.int32([[-1, 300]]), "mode 'I', values of an unknown range: -1 to 300"),
        (np.int32([[0, 255]]), "mode 'I', values of an unknown range: 0 to 255"),  # 8 bits, or dark ones of 16
        (np.float32([[0, 1]]), "mode 'F', floats of an unknown range"),
    ],
)
def test_levels_of_an_unknown_range_are_refused_with_file_and_mode(tmp_path, values, said, convert):
    file = save(Image.fromarray(values), tmp_path / "a.tif")
    with pytest.raises(ValueError, match="expected a picture of 8 or 16 bits a channel, got") as caught:
        read_image(file, convert)
    assert str(caught.value) == f"{file}: expected a picture of 8 or 16 bits a channel, got {said}"


# -------------------------------------------------------------------------------------------------------- transparency


def with_transparency(file, mode):
    """A PNG or GIF of noise whose first colour is transparent."""
    image = noise(8, 8)
    if mode == "P bytes":
        image = image.quantize(16)
        return save(image, file, transparency=bytes(range(0, 160, 10)))
    if mode == "P":
        image = image.quantize(16)
    elif mode != "RGB":
        image = image.convert("L") if mode == "L" else Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
    first = image.getpixel((0, 0))
    return save(image, file, transparency=first)


@CONVERSIONS
@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.png", "L"), ("a.png", "P"), ("a.png", "P bytes"), ("a.gif", "P"), ("a.png", "I;16")],
)
def test_a_transparent_colour_is_dropped_without_a_trace(tmp_path, name, mode, convert):
    file = with_transparency(tmp_path / name, mode)
    with Image.open(file) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "transparency" in image.info
        bytes_of_convert = np.asarray(image.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(file, convert)
    assert "transparency" not in read.info
    if mode != "I;16":
        assert np.array_equal(np.asarray(read), bytes_of_convert)


def test_a_conversion_leaves_what_it_was_given(tmp_path):
    with Image.open(with_transparency(tmp_path / "a.png", "RGB")) as image:
        to_rgb(image)
        assert "transparency" in image.info


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_dropped_and_that_of_rgba_alone_is_blended_with_white(mode):
    image = noise(6, 5, "RGBA").convert("LA") if mode == "LA" else noise(6, 5, "RGBA")
    if mode == "PA":
        image = noise(6, 5).quantize(16).convert("PA")
        image.putalpha(Image.new("L", image.size, 0))
    colours = image.convert("RGBA") if mode != "PA" else image.convert("RGB").convert("RGBA")
    dropped = np.asarray(colours)[:, :, :3]
    assert np.array_equal(np.asarray(to_rgb(image)), dropped)
    if mode != "RGBA":
        assert np.array_equal(np.asarray(on_white(image)), dropped)
    else:
        white = Image.new("RGBA", image.size, "white")
        blended = np.asarray(Image.alpha_composite(white, image)).astype(int)[:, :, :3]
        assert abs(np.asarray(on_white(image)) - blended).max() <= 1


# ---------------------------------------------------------------------------------------------------------- other kinds


@CONVERSIONS
def test_ink_bits_frames_and_turned_pictures_are_read_as_published(tmp_path, convert):
    ink = Image.new("CMYK", (1, 3))
    for row, inks in enumerate([(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 0)]):
        ink.putpixel((0, row), inks)
    read = read_image(save(ink, tmp_path / "a.tif"), convert)
    assert np.asarray(read)[:, 0].tolist() == [[255, 255, 255], [0, 0, 0], [0, 255, 255]]

    bits = np.eye(3, dtype=bool)
    read = read_image(save(Image.fromarray(bits), tmp_path / "bits.png"), convert)
    assert np.array_equal(np.asarray(read), grey(bits * np.uint8(255)))

    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    save(first, tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "moving.gif", convert).getcolors() == [(16, (255, 0, 0))]

    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_image(save(noise(8, 4), tmp_path / "turned.png", exif=exif), convert)
    assert np.array_equal(np.asarray(read), np.asarray(noise(8, 4)))


def test_a_palette_is_read_as_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    read = read_image(save(image, tmp_path / "a.png", transparency=1), on_white)
    assert np.asarray(read).tolist() == [[[10, 20, 30], [40, 50, 60]]]


# --------------------------------------------------------------------------------------------------------------- sides


@CONVERSIONS
@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (10000, 10), (201, 1)])
def test_a_steep_picture_is_refused_before_it_is_decoded(tmp_path, size, convert, monkeypatch):
    file = save(Image.new("RGB", size), tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="expected a picture at most") as caught:
        read_image(file, convert)
    message = f"expected a picture at most 200 times as long as wide, got {size[0]} x {size[1]} pixels"
    assert str(caught.value) == f"{file}: {message}"


def test_a_picture_of_200_to_1_is_read(tmp_path):
    assert read_image(save(Image.new("RGB", (200, 1)), tmp_path / "a.png")).size == (200, 1)


def test_what_pillow_refuses_takes_no_memory(tmp_path):
    content = bytearray(save(Image.new("1", (100, 100)), tmp_path / "a.png").read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    header = io.BytesIO()
    PngImagePlugin.putchunk(header, b"IHDR", bytes(content[16:29]))
    content[8:33] = header.getvalue()
    (tmp_path / "a.png").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.png: Image size \(400000000 pixels\) exceeds limit"):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("image", [Image.new("RGB", (500, 1)), Image.fromarray(np.float32([[0, 1]]))])
def test_embedded_pictures_are_refused_alike(image):
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    question = {"image_base64": base64.b64encode(stream.getvalue()).decode()}
    with pytest.raises(UnfitPicture, match=r"^the embedded picture: expected a picture"):
        read_image(embedded_image(question))
