"""A picture becomes the vision encoder's input as published: two resizes, then patches. Needs no torchvision.

The first resize is qwen-vl-utils', with one pixel budget for all; the second is the image processor's, with the budget
of the command. A picture above the command's budget is resized twice, and that differs from once.
"""

import math
from pathlib import Path

from PIL import Image

from vscan.io.checkpoint import read_json
from vscan.io.images import check_sides, on_white, resize

# Pixel budgets, least and most, in units of 28 x 28 pixels, which become one visual token each.
SIDE = 28
UNIT = SIDE * SIDE
FIRST = (4, 16384)  # qwen-vl-utils
COMMANDS = {  # None: the checkpoint's own
    "model_vqa_loader": (4, 1280),
    "model_vqa_science": (256, 1280),
    "model_vqa_mmbench": (1024, 16384),
    "test_refcoco": None,
}
UNSAID = (4, 1280)  # a checkpoint that says nothing


def pixel_budget(command: str, folder: str | Path, least: int | None, most: int | None) -> tuple[int, int]:
    """The pixels that a picture may have after the second resize, (least, most).

    Args:
        command: a name in COMMANDS.
        folder: the checkpoint.
        least, most: `--min-pixels` and `--max-pixels`; None leaves the command's.

    Raises:
        ValueError: if they allow no picture at all.
    """
    units = COMMANDS[command]
    own = _checkpoint_budget(Path(folder)) if units is None else (units[0] * UNIT, units[1] * UNIT)
    budget = (own[0] if least is None else least, own[1] if most is None else most)
    if not budget[0] <= budget[1] or budget[1] < UNIT:
        raise ValueError(
            f"min_pixels and max_pixels: expected a range with at least {UNIT} pixels (one visual token) at its upper "
            f"end, got {budget[0]} to {budget[1]}"
        )
    return budget


def _checkpoint_budget(folder: Path) -> tuple[int, int]:
    """What preprocessor_config.json says, under its old keys or the new ones."""
    config = read_json(folder / "preprocessor_config.json")
    size = config.get("size") or {}
    least = config.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
    most = config.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge")
    return least or UNSAID[0] * UNIT, most or UNSAID[1] * UNIT


def fit(width: int, height: int, budget: tuple[int, int], side: int = SIDE) -> tuple[int, int]:
    """The (width, height) that a picture is resized to: whole units, within the budget, in about its proportion.

    Raises:
        ValueError: for a picture more than 200 times as long as wide.
    """
    check_sides(width, height)
    least, most = budget
    units = [max(1, round(length / side)) for length in (width, height)]
    pixels = units[0] * units[1] * side * side
    if pixels > most:
        scale = math.sqrt(width * height / most)
        units = [max(1, math.floor(length / scale / side)) for length in (width, height)]
    elif pixels < least:
        scale = math.sqrt(least / (width * height))
        units = [math.ceil(length * scale / side) for length in (width, height)]
    return units[0] * side, units[1] * side


def resize_twice(image: Image.Image, budget: tuple[int, int], side: int = SIDE) -> Image.Image:
    """An RGB picture after both resizes; `budget` is the second one's, in pixels.

    Raises:
        ValueError: for a picture more than 200 times as long as wide.
    """
    unit = side * side
    image = resize(image, *fit(*image.size, (FIRST[0] * unit, FIRST[1] * unit), side))
    return resize(image, *fit(*image.size, budget, side))


def process_image(image: Image.Image, image_processor, budget: tuple[int, int]):
    """Resize a picture and cut it into patches.

    Args:
        image: of any size and mode; what is not RGB becomes it by `on_white`.
        image_processor: a Qwen2VLImageProcessorPil; what it knows of sizes is not used.
        budget: least and most pixels.

    Returns:
        pixel_values float32 [patches, 3 * 2 * 14 * 14], image_grid_thw int64 [1, 3]: 1, patch rows, patch columns.

    Raises:
        ValueError: for a picture more than 200 times as long as wide, or grey levels of an unknown range.
    """
    resized = resize_twice(on_white(image), budget, image_processor.patch_size * image_processor.merge_size)
    # The processor would resize as Pillow pleases; see `vscan.io.images.resize`.
    made = image_processor([resized], do_resize=False, return_tensors="pt")
    return made["pixel_values"], made["image_grid_thw"]
