"""Pictures on their way into the model: which size they get, bit for bit, and what is refused."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from qwen.images import COMMANDS, FIRST, SIDE, UNIT, fit, pixel_budget, process_image, resize_twice
from vscan.io.images import on_white, read_image

LOADER = (4 * UNIT, 1280 * UNIT)


def noise(width, height, mode="RGB"):
    chance = np.random.default_rng(0)
    return Image.fromarray(chance.integers(0, 256, (height, width, len(mode)), dtype=np.uint8), mode)


# ------------------------------------------------------------------------------------------------------ recorded data


def test_pixels_are_the_recorded_ones(golden):
    folder = golden / "cli"
    records = json.loads((folder / "preprocessed" / "qwen.json").read_text())
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "qwen" / "tiny-qwen2.5-vl")
    small = {name: record for name, record in records.items() if "file" in record}
    assert {record["original_mode"] for record in small.values()} == {"RGB", "L", "RGBA", "P"}
    for name, record in small.items():
        image = read_image(folder / "images" / name, on_white)
        with Image.open(folder / record["file"]) as recorded:
            assert np.array_equal(np.asarray(resize_twice(image, LOADER)), np.asarray(recorded.convert("RGB"))), name
        pixels, grid = process_image(image, processor, LOADER)
        assert grid.tolist() == [record["grid_thw"]]
        assert pixels.shape == (math.prod(record["grid_thw"]), 3 * 2 * 14 * 14)
        assert pixels.double().sum().item() == pytest.approx(record["pixel_values_sum_float64"], rel=1e-12), name


def test_a_very_large_picture_is_resized_twice(golden):
    folder = golden / "cli"
    record = json.loads((folder / "preprocessed" / "qwen.json").read_text())["large_000000107.jpg"]
    image = read_image(folder / "images" / "large_000000107.jpg", on_white)
    first = tuple(units * UNIT for units in FIRST)
    assert list(fit(*image.size, first)) == record["after_qwen_vl_utils"]
    assert list(resize_twice(image, LOADER).size) == record["after_processor"]
    assert list(fit(*record["after_qwen_vl_utils"], LOADER)) == record["after_processor"]
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "qwen" / "tiny-qwen2.5-vl")
    pixels, grid = process_image(image, processor, LOADER)
    assert grid.tolist() == [record["grid_thw"]]
    assert pixels.double().sum().item() == pytest.approx(record["pixel_values_sum_float64"], rel=1e-12)
    once = image.resize(tuple(record["after_processor"]), Image.Resampling.BICUBIC)
    twice = np.asarray(resize_twice(image, LOADER))
    assert (np.asarray(once) != twice).mean() > 0.1
    assert hashlib.sha256(twice.tobytes()).hexdigest() == record["final_rgb_uint8_sha256"]


# --------------------------------------------------------------------------------------------------------- the sizes


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 2000).flatmap(lambda low: st.tuples(st.just(low), st.integers(4 * low, 16384))),
)
def test_sizes_are_whole_units_within_the_budget(width, height, units):
    budget = (units[0] * UNIT, units[1] * UNIT)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match=f"at most 200 times as long as wide, got {width} x {height} pixels"):
            fit(width, height, budget)
        return
    got = fit(width, height, budget)
    assert all(side % SIDE == 0 and side > 0 for side in got)
    narrow = min(got) == SIDE  # one unit is the least, also where the proportion asks for less
    assert got[0] * got[1] <= budget[1] or narrow
    assert got[0] * got[1] >= budget[0] or narrow


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(list(filter(None, COMMANDS.values()))))
def test_the_second_resize_is_that_of_the_processor(columns, rows, units):
    """After the first resize sides are whole units, and there both rules must agree."""
    budget = {"min_pixels": units[0] * UNIT, "max_pixels": units[1] * UNIT}
    size = (columns * SIDE, rows * SIDE)
    assert fit(*size, tuple(budget.values())) == smart_resize(size[1], size[0], **budget)[::-1]


def test_halves_round_to_even_as_published():
    assert fit(70, 70, LOADER) == (56, 56)
    assert fit(98, 98, LOADER) == (112, 112)


def test_a_tiny_picture_grows_to_four_units_and_a_thin_one_keeps_one():
    assert fit(1, 1, LOADER) == (56, 56)
    assert fit(2000, 10, LOADER) == (1988, 28)


def test_every_grey_level_of_a_picture_that_fits_stays():
    image = noise(84, 56)
    assert np.array_equal(np.asarray(resize_twice(image, LOADER)), np.asarray(image))


def test_the_width_is_resized_first():
    image = noise(500, 30)
    by_width = image.resize((504, 30), Image.Resampling.BICUBIC).resize((504, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resize_twice(image, LOADER)), np.asarray(by_width))


# ------------------------------------------------------------------------------------------------------ transparency


def test_transparency_is_blended_with_white_and_only_that_of_rgba():
    clear = noise(8, 8, "RGBA")
    clear.putalpha(0)
    assert np.asarray(on_white(clear)).min() == 255
    clear.putalpha(255)
    assert np.array_equal(np.asarray(on_white(clear)), np.asarray(clear)[:, :, :3])
    grey = Image.merge("LA", (Image.new("L", (4, 4), 90), Image.new("L", (4, 4), 0)))
    assert np.asarray(on_white(grey)).tolist() == [[[90, 90, 90]] * 4] * 4


# ----------------------------------------------------------------------------------------------------------- budgets


def test_budgets_are_those_of_the_published_commands(qwen_checkpoint):
    units = {
        name: tuple(pixels / UNIT for pixels in pixel_budget(name, qwen_checkpoint, None, None)) for name in COMMANDS
    }
    assert units == {
        "model_vqa_loader": (4, 1280),
        "model_vqa_science": (256, 1280),
        "model_vqa_mmbench": (1024, 16384),
        "test_refcoco": (4, 16384),
    }
    assert pixel_budget("model_vqa_science", qwen_checkpoint, 5 * UNIT, None) == (5 * UNIT, 1280 * UNIT)
    assert pixel_budget("model_vqa_loader", qwen_checkpoint, None, 9 * UNIT) == (4 * UNIT, 9 * UNIT)


@pytest.mark.parametrize(
    ("said", "budget"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 80000}}, (800, 80000)),
        ({"size": {"min_pixels": 800, "max_pixels": 80000}}, (800, 80000)),
        ({"min_pixels": 900, "size": {"shortest_edge": 800, "longest_edge": 80000}}, (900, 80000)),
        ({}, (3136, 1280 * UNIT)),
    ],
)
def test_a_checkpoint_says_its_budget_in_old_keys_or_new_ones(tmp_path, said, budget):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert pixel_budget("test_refcoco", tmp_path, None, None) == budget


@pytest.mark.parametrize(("least", "most"), [(2000, 1000), (None, 1), (1, 783), (1281 * UNIT, None)])
def test_a_budget_that_allows_no_picture_is_refused(qwen_checkpoint, least, most):
    with pytest.raises(ValueError, match="min_pixels and max_pixels: expected a range"):
        pixel_budget("model_vqa_loader", qwen_checkpoint, least, most)
