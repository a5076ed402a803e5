"""The models that can be reduced, each tiny, behind one face; a new family is one entry of `FAMILIES`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from helpers import IMAGE_TOKEN, prompt, tiny_llava, tiny_next, tiny_original
from qwen_helpers import image, inputs_of, tiny_qwen
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from video_helpers import clip, picture, tiny_original_video, tiny_video_llava
from video_helpers import inputs_of as video_inputs_of

from llava.constants import IMAGE_TOKEN_INDEX
from vscan.compat import pooled

NUM_LAYERS, SIDE = 4, 8

# Token ids and names of pictures. The unequal rows hold one picture, one, none and two.
ROWS = {
    "one": [[1, "wide", 5, 6, 7]],
    "unequal": [[1, "wide", 5], [1, 4, 9, "tall", 6, 7, 8], [1, 7, 8, 9], [1, "tall", 3, "wide", 4]],
}
SEEDS = {"wide": 1, "tall": 2}
HEIGHT_AND_WIDTH = {"wide": (40, 60), "tall": (64, 30)}  # in pixels
TOKENS = {"wide": (5, 8), "tall": (9, 4)}  # where a picture has as many tokens as its size asks for


class Words:
    """The tokenizer of all these models: a token's word is its number, another word the number of its letters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [int(word) if word.isdecimal() else len(word) for word in text.split()]}


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of model.

    Args:
        make: a model of four decoder layers, the same weights every time.
        inputs: from that model, rows as in `ROWS` and the side that is padded to the keywords of a call.
        budgets: of a reduction that drops tokens after the encoder and twice in the decoder.
        vscan_fields: what the method of that name must be told, because the tower is so small.
        markers: tokens of text around every picture.
        unpads: whether it depends on the picture how many tokens are left after the encoder.
        has_cls: whether the vision encoder has a [CLS] token.
    """

    make: Callable
    inputs: Callable
    budgets: dict = field(default_factory=lambda: {"visual_tokens": 20, "layers": {1: 9, 3: 4}})
    vscan_fields: dict = field(default_factory=lambda: {"local_layer": 1})
    markers: int = 0
    unpads: bool = False
    has_cls: bool = True

    @property
    def model(self):
        return _made(self.make)

    def fields(self, method: str) -> dict:
        """What a method must be told on this model."""
        return self.vscan_fields if method == "vscan" else {}

    @property
    def settings(self) -> dict:
        """A whole reduction."""
        return {**self.budgets, **self.vscan_fields}


@lru_cache(maxsize=8)
def _made(make: Callable):
    return make()


def names_of(rows: list) -> list[str]:
    """The pictures of some rows."""
    return [part for row in rows for part in row if isinstance(part, str)]


def crops_of(name: str, number: int) -> torch.Tensor:
    """A picture, always the same under its name: [number, 3, H, W]."""
    generator = torch.Generator().manual_seed(SEEDS[name])
    return torch.randn(number, 3, 4 * SIDE, 4 * SIDE, generator=generator)


def padded(rows: list, place: Callable[[str], list[int]], side: str) -> dict:
    """Ids and mask of rows in which each picture is some ids."""
    rows = [[i for part in row for i in (place(part) if isinstance(part, str) else [part])] for row in rows]
    ids, mask = prompt(rows, 0, side=side)
    return {"input_ids": ids, "attention_mask": mask}


def llava(model, rows: list, side: str = "left") -> dict:
    pixels = {"pixel_values": torch.cat([crops_of(name, 1) for name in names_of(rows)])} if names_of(rows) else {}
    return {**padded(rows, lambda name: [IMAGE_TOKEN] * SIDE**2, side), **pixels}


def llava_next(model, rows: list, side: str = "left") -> dict:
    names = names_of(rows)
    if not names:
        return padded(rows, lambda name: [], side)
    images = {
        "pixel_values": torch.stack([crops_of(name, 3) for name in names]),
        "image_sizes": torch.tensor([HEIGHT_AND_WIDTH[name] for name in names]),
    }
    with torch.no_grad():
        lengths = map(len, pooled(model.model.get_image_features(**images, return_dict=True)))
    length_of = dict(zip(names, lengths, strict=True))
    return {**padded(rows, lambda name: [IMAGE_TOKEN] * length_of[name], side), **images}


def original(model, rows: list, side: str = "left", tiles: bool = False) -> dict:
    names, images = names_of(rows), {}
    if names and tiles:
        sizes = [HEIGHT_AND_WIDTH[name][::-1] for name in names]
        images = {"images": [crops_of(name, 3) for name in names], "image_sizes": sizes}
    elif names:
        images = {"images": torch.cat([crops_of(name, 1) for name in names])}
    return {**padded(rows, lambda name: [IMAGE_TOKEN_INDEX], side), **images}


def qwen(model, rows: list, side: str = "left") -> dict:
    return inputs_of([[image(*TOKENS[part]) if isinstance(part, str) else part for part in row] for row in rows], side)


def video_llava(model, rows: list, side: str = "left") -> dict:
    """Wide pictures are clips, tall ones images."""
    shown = {"wide": clip(), "tall": picture()}
    return video_inputs_of(model, [[shown.get(part, part) for part in row] for row in rows], side)


def qwen_family(cls: type) -> Family:
    shares = {"visual_tokens": 0.5, "layers": {1: 0.6, 3: 4}}
    return Family(partial(tiny_qwen, cls), qwen, shares, vscan_fields={}, markers=2, has_cls=False)


FAMILIES = {
    "llava": Family(partial(tiny_llava, NUM_LAYERS, 4, SIDE), llava),
    "llava_next": Family(tiny_next, llava_next, unpads=True),
    "qwen2_5_vl": qwen_family(Qwen2_5_VLForConditionalGeneration),
    "qwen2_vl": qwen_family(Qwen2VLForConditionalGeneration),
    "video_llava": Family(tiny_video_llava, video_llava),
    "original": Family(tiny_original, original),
    "original_any_resolution": Family(partial(tiny_original, tiles=True), partial(original, tiles=True), unpads=True),
    "original_video": Family(tiny_original_video, video_llava),
}
