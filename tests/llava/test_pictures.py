"""LLaVA's pixels of pictures of every kind: the bytes of convert("RGB"), normalised; none that takes all the memory."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.eval.model_vqa_loader import main
from llava.mm_utils import expand2square, load_image, load_image_processor, process_images

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SHAPES = {
    "pad": SimpleNamespace(image_aspect_ratio="pad"),
    "none": SimpleNamespace(image_aspect_ratio=None),
    "anyres": SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 28], [28, 56]]),
}
SHAPED = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def processor_of(folder, **changes):
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        **changes,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return load_image_processor(folder)


@pytest.fixture
def processor(tmp_path):
    return processor_of(tmp_path)


def noise(width, height):
    return Image.frombytes("RGB", (width, height), np.random.default_rng(0).bytes(width * height * 3))


def normalised(image):
    """float32 [1, 3, H, W] of a uint8 image, by the published arithmetic."""
    scaled = (np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32)
    values = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]


@SHAPED
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_transparent_colour_is_not_blended(processor, tmp_path, mode, shape):
    image = noise(28, 28).quantize(16) if mode == "P" else noise(28, 28).convert(mode)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    plain = Image.fromarray(np.asarray(image.convert("RGB")))
    pixels = process_images([load_image(tmp_path / "a.png")], processor, shape)
    assert torch.equal(pixels[:1], normalised(plain))
    assert torch.equal(pixels, process_images([plain], processor, shape))


@SHAPED
def test_pictures_that_pillow_opened_give_the_same_pixels(processor, tmp_path, shape):
    noise(28, 28).save(tmp_path / "a.png", transparency=noise(28, 28).getpixel((0, 0)))
    with Image.open(tmp_path / "a.png") as opened:
        for image in (opened, opened.convert("RGB"), opened.convert("RGBA")):
            assert torch.equal(
                process_images([image], processor, shape), process_images([noise(28, 28)], processor, shape)
            )


def test_a_picture_of_16_bits_has_the_pixels_of_the_one_of_8(processor, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (28, 28))
    Image.fromarray((levels * 257).astype(np.uint16)).save(tmp_path / "a.png")
    pixels = process_images([load_image(tmp_path / "a.png")], processor, SHAPES["pad"])
    assert torch.equal(pixels, normalised(levels[:, :, None].repeat(3, axis=2)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"resample": 2}, {"size": {"shortest_edge": 40}}, {"size": {"height": 30, "width": 31}}, {"do_resize": False}],
)
def test_a_padded_square_is_resized_as_the_processor_does(tmp_path, changes):
    processor = processor_of(tmp_path, **changes)
    image = noise(60, 33)
    square = expand2square(image, tuple(int(mean * 255) for mean in MEAN))
    expected = processor([square], return_tensors="pt")["pixel_values"]
    assert torch.equal(process_images([image], processor, SHAPES["pad"]), expected)


@SHAPED
@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (10000, 10)])
def test_a_steep_picture_is_refused_at_once(processor, size, shape):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"at most 200 times as long as wide, got {size[0]} x {size[1]} pixels"):
        process_images([Image.new("RGB", size)], processor, shape)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("size", [(20000, 100), (101, 20000)])
def test_a_square_that_pillow_would_not_open_is_refused_before_it_is_made(processor, size, monkeypatch):
    image = Image.new("RGB", size)
    monkeypatch.setattr(Image, "new", lambda *arguments: pytest.fail("it was made"))
    message = rf"at most 178956970 pixels, got 20000 x 20000 for one of {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=message):
        process_images([image], processor, SHAPES["pad"])


def test_the_limit_is_the_one_that_pillow_was_given(monkeypatch):
    image = Image.new("RGB", (30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 449)
    with pytest.raises(ValueError, match="at most 898 pixels, got 30 x 30"):
        expand2square(image, (0, 0, 0))
    for limit in (450, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert expand2square(image, (0, 0, 0)).size == (30, 30)


def test_a_steep_a_wide_and_a_float_picture_are_skipped_and_named(checkpoint, tmp_path):
    Image.new("RGB", (60000, 1)).save(tmp_path / "steep.png")
    Image.new("1", (20000, 110)).save(tmp_path / "wide.png")
    Image.new("F", (9, 9)).save(tmp_path / "float.tif")
    noise(9, 9).save(tmp_path / "good.png")
    rows = [
        {"question_id": 10 + row, "image": image, "text": "What is this?"}
        for row, image in enumerate(["steep.png", "good.png", "wide.png", "float.tif"])
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "--model-path": checkpoint,
        "--question-file": tmp_path / "q.jsonl",
        "--image-folder": tmp_path,
        "--answers-file": tmp_path / "a.jsonl",
        "--temperature": 0,
        "--max_new_tokens": 2,
        "--device": "cpu",
        "--num-workers": 0,
        "--on-error": "skip",
    }
    flags = [str(part) for pair in given.items() for part in pair]
    main(flags)
    assert [json.loads(line)["question_id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [11]
    said = Path(f"{tmp_path}/a.jsonl.skipped.jsonl").read_text().splitlines()
    for line, row, problem in zip(said, (10, 12, 13), ("60000 x 1", "20000 x 20000", "mode 'F'"), strict=True):
        assert json.loads(line)["question_id"] == row
        assert problem in line
    with pytest.raises(ValueError, match=r"row 0, question 10: .*steep.png: expected a picture at most 200 times"):
        main([*flags, "--on-error", "stop"])
