"""Images in, pixels out; prompts in, token ids out.

Contents:
    load_image, load_image_processor                                   an image file and what prepares it
    expand2square, cut_into_crops, process_images                      an image becomes the tower's input
    tokenizer_image_token, expand_image_tokens                         a prompt becomes token ids
    get_model_name_from_path                                           the name under which answers are filed
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from vscan.compat import CLIPImageProcessorPil
from vscan.io.checkpoint import model_name as get_model_name_from_path
from vscan.io.images import UnfitPicture, check_sides, resize, to_rgb
from vscan.io.images import read_image as load_image

__all__ = [
    "cut_into_crops",
    "expand2square",
    "expand_image_tokens",
    "get_model_name_from_path",
    "load_image",
    "load_image_processor",
    "process_images",
    "tokenizer_image_token",
]


def load_image_processor(folder: str | Path) -> CLIPImageProcessorPil:
    """Returns the CLIP image processor that `folder` describes, in the variant that needs no torchvision.

    The published results rest on Pillow's bicubic resize. Another library's pixels differ a little, and one grey level
    can change an answer.

    Raises:
        FileNotFoundError: the folder has no preprocessor_config.json.
    """
    config = Path(folder) / "preprocessor_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"expected {config.name} of a CLIP vision tower in {folder}, found none")
    return CLIPImageProcessorPil.from_pretrained(folder)


def expand2square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Returns `image` in the middle of the smallest square that holds it, filled up with the colour `background`.

    Raises:
        UnfitPicture: a ValueError, for a square of more pixels than Pillow agrees to open; it takes no memory then.
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    if Image.MAX_IMAGE_PIXELS is not None and side**2 > 2 * Image.MAX_IMAGE_PIXELS:
        raise UnfitPicture(
            f"expected a picture whose padded square has at most {2 * Image.MAX_IMAGE_PIXELS} pixels, "
            f"got {side} x {side} for one of {width} x {height}"
        )
    square = Image.new(image.mode, (side, side), background)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def select_best_resolution(image_size: tuple[int, int], resolutions: list) -> tuple[int, int]:
    """Returns the (width, height) out of `resolutions` that keeps most of an image's pixels and wastes least; the first
    of several.

    Args:
        image_size: (width, height).
        resolutions: The checkpoint's `image_grid_pinpoints`, (width, height) each.
    """

    def fit(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[0] / image_size[0], resolution[1] / image_size[1])
        pixels = int(image_size[0] * scale) * int(image_size[1] * scale)
        kept = min(pixels, image_size[0] * image_size[1])
        return kept, kept - resolution[0] * resolution[1]

    return tuple(max(resolutions, key=fit))


def cut_into_crops(image: Image.Image, resolutions: list, side: int) -> list[Image.Image]:
    """Returns what an any-resolution checkpoint sees of an image: all of it squeezed into one crop, then the tiles of
    the image resized into the best resolution, in the middle of black.

    Args:
        image: An RGB image.
        resolutions: The checkpoint's `image_grid_pinpoints`, (width, height) each.
        side: Pixels of a crop's side.
    """
    width, height = select_best_resolution(image.size, resolutions)
    scale_w, scale_h = width / image.width, height / image.height
    if scale_w < scale_h:
        size = width, min(math.ceil(image.height * scale_w), height)
    else:
        size = min(math.ceil(image.width * scale_h), width), height
    canvas = Image.new("RGB", (width, height), (0, 0, 0))
    canvas.paste(resize(image, *size), ((width - size[0]) // 2, (height - size[1]) // 2))
    tiles = [canvas.crop((x, y, x + side, y + side)) for y in range(0, height, side) for x in range(0, width, side)]
    return [resize(image, side, side), *tiles]


def _shrink(square: Image.Image, image_processor: CLIPImageProcessorPil) -> Image.Image:
    """A square as the processor would resize it, which would copy a large one several times before it does."""
    side = dict(image_processor.size).get("shortest_edge")
    if side is None or not image_processor.do_resize:
        return square
    return square.resize((side, side), image_processor.resample)


def process_images(images: list[Image.Image], image_processor: CLIPImageProcessorPil, model_cfg: Any) -> torch.Tensor:
    """Returns the input of the vision tower for some images.

    Args:
        images: of any sizes and modes; what is not RGB becomes it as in `load_image`.
        image_processor: What resizes, crops and normalises them to H x W pixels.
        model_cfg: The checkpoint's configuration. Its `image_aspect_ratio` decides what comes first: "pad" pads to a
            square with the mean colour; "anyres" cuts into crops by `image_grid_pinpoints`, for one image at a time;
            any other value leaves the cropping to the processor.

    Returns:
        float32 [len(images), 3, H, W], or [crops, 3, H, W] for "anyres".

    Raises:
        ValueError: more than one image with "anyres", another way to cut ("anyres_max_9"), or an image that is too
            steep or too large to pad.
    """
    for image in images:
        check_sides(*image.size)
    images = [to_rgb(image) for image in images]
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect_ratio == "anyres":
        if len(images) != 1:
            raise ValueError(f"expected one image at a time for image_aspect_ratio 'anyres', got {len(images)}")
        side = image_processor.crop_size["height"]
        images = cut_into_crops(images[0], model_cfg.image_grid_pinpoints, side)
    elif str(aspect_ratio).startswith("anyres"):
        raise ValueError(f"expected image_aspect_ratio to be 'anyres', 'pad', 'square' or None, got {aspect_ratio!r}")
    if aspect_ratio == "pad":
        background = tuple(int(mean * 255) for mean in image_processor.image_mean)
        images = [_shrink(expand2square(image, background), image_processor) for image in images]
    return image_processor(images, return_tensors="pt")["pixel_values"]


def tokenizer_image_token(
    prompt: str, tokenizer, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Returns the token ids of a prompt, with `image_token_index` for every "<image>" in it.

    The texts between the images are tokenised one by one, as in training. What the tokenizer puts before a text stays
    with each of them (sentencepiece's space), except bos: only the first keeps it.

    Args:
        prompt: Text with any number of "<image>".
        tokenizer: Called on a text, returns an object with `input_ids`; has `bos_token_id`.
        image_token_index: The id that stands for an image.
        return_tensors: "pt" for a tensor, None for a list.

    Returns:
        A list of N ids, or int64 [N].

    Raises:
        ValueError: `return_tensors` is something else.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"expected return_tensors to be 'pt' or None, got {return_tensors!r}")
    first, *others = (list(tokenizer(text).input_ids) for text in prompt.split(DEFAULT_IMAGE_TOKEN))
    ids = first
    for other in others:
        if other[:1] == [tokenizer.bos_token_id]:
            other = other[1:]
        ids += [image_token_index, *other]
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def expand_image_tokens(
    ids: list[int] | torch.Tensor, image_token_id: int, tokens_per_image: int
) -> list[int] | torch.Tensor:
    """Returns `ids` in the Hugging Face form, where an image is a run of placeholders that are in the vocabulary.

    Args:
        ids: N ids, as a list or as int64 [N]; every `IMAGE_TOKEN_INDEX` (-200) is an image.
        image_token_id: The placeholder's id.
        tokens_per_image: How many placeholders an image takes.

    Returns:
        The M ids, M = N + images * (tokens_per_image - 1): a list for a list, int64 [M] for a tensor.

    Raises:
        ValueError: a tensor has another number of dimensions than one.
    """
    if isinstance(ids, torch.Tensor):
        if ids.ndim != 1:
            raise ValueError(f"expected ids of shape [N], got {list(ids.shape)}")
        is_image = ids == IMAGE_TOKEN_INDEX
        counts = torch.where(is_image, tokens_per_image, 1)
        return ids.masked_fill(is_image, image_token_id).repeat_interleave(counts)
    image = [image_token_id] * tokens_per_image
    return [out for token in ids for out in (image if token == IMAGE_TOKEN_INDEX else [token])]
