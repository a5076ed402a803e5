"""How a LLaVA answers: a question becomes ids and pixels in a worker process, a batch of them becomes answers."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import build_prompt
from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.video import NUM_FRAMES, ClipProcessor
from vscan.api import Reduction
from vscan.compat import ENCODED, pooled, takes_encoded
from vscan.eval.answering import check_context, left_padded, read_stages
from vscan.eval.runner import Answer
from vscan.io import checkpoint
from vscan.io.images import ImageFolder
from vscan.models.encoded import EncodedImages
from vscan.models.llava_next import image_lengths

from .clips import clip_processor, expanded, read_pixels, sees_clips, stock_inputs

FindImage = Callable[[dict], str | io.BytesIO | None]  # from a question to its picture's file or content


def load_checked(
    model_path: str, device: str | None = None, dtype: str = "auto", attn_implementation: str | None = None
) -> tuple:
    """Load a checkpoint for a command: (tokenizer, model, image processor).

    Raises:
        FileNotFoundError, ValueError: for whatever keeps it from loading.
    """
    options = {"attn_implementation": attn_implementation, "dtype": dtype}
    return checkpoint.load_checked(load_pretrained_model, model_path, device, **options)[:3]


def is_original(model) -> bool:
    """Whether a model came from a checkpoint in the original format."""
    return hasattr(model, "encode_images")


@dataclass(frozen=True)
class Prompt:
    """A prepared question.

    Args:
        ids: token ids, IMAGE_TOKEN_INDEX for the image.
        pixels: the image's views [n, 3, H, W], or None.
        image_size: the picture's (width, height), or None.
        image_key: prompts with the same key show the same picture, which a batch encodes once; None shares nothing.
        text: the question.
        num_frames: of a clip, with pixels [3, num_frames, H, W] and as many IMAGE_TOKEN_INDEX; 0 for an image.
    """

    ids: list[int]
    pixels: Tensor | None = None
    image_size: tuple[int, int] | None = None
    image_key: str | None = None
    text: str = ""
    num_frames: int = 0


@dataclass(frozen=True, eq=False)
class Preparation:
    """From a question to a `Prompt`. Runs in worker processes, so it holds no model.

    Pixels are made alike for both checkpoint formats, as published: padded to a square for LLaVA-1.5, whose stock
    processor would crop, and cut into crops for LLaVA-NeXT.
    """

    tokenizer: Any
    image_processor: Any
    find_image: FindImage
    conv_mode: str
    image_aspect_ratio: str | None = "pad"
    image_grid_pinpoints: tuple[tuple[int, int], ...] = ()
    mm_use_im_start_end: bool = False

    @classmethod
    def of(
        cls,
        model,
        tokenizer,
        image_processor,
        images: str | Path | FindImage,
        conv_mode: str,
        reduction: Reduction | None = None,
    ) -> "Preparation":
        """The preparation for a model and the reduction in force on it; `images` is a folder, or finds a picture."""
        config = model.config
        if sees_clips(config):
            image_processor = clip_processor(image_processor, is_original(model))
        args = (tokenizer, image_processor, images if callable(images) else ImageFolder(str(images)), conv_mode)
        pinpoints = tuple(map(tuple, getattr(config, "image_grid_pinpoints", None) or ()))
        if not is_original(model):  # heights come first here
            return cls(*args, "anyres" if pinpoints else "pad", tuple(pair[::-1] for pair in pinpoints))
        fixed = None if reduction is None else reduction.method.anyres_resolution
        return cls(
            *args,
            getattr(config, "image_aspect_ratio", None),
            pinpoints if fixed is None else (fixed[::-1],),
            getattr(config, "mm_use_im_start_end", False),
        )

    def __call__(self, question: dict) -> Prompt:
        pixels = size = key = None
        source, is_clip = self.find_image(question), bool(question.get("video"))
        if source is not None:
            pixels, size = self._read(source, is_clip)
            key = source if isinstance(source, str) else None
        num_frames = NUM_FRAMES if is_clip else 0
        expected = num_frames or int(pixels is not None)
        prompt = build_prompt(question["text"], self.conv_mode, self.mm_use_im_start_end, expected)
        ids = tokenizer_image_token(prompt, self.tokenizer)
        if ids.count(IMAGE_TOKEN_INDEX) != expected:
            raise ValueError(
                f"expected a prompt with {expected} images, got {ids.count(IMAGE_TOKEN_INDEX)}: the question's text "
                f"must not hold {DEFAULT_IMAGE_TOKEN}, {question['text'][:60]!r}"
            )
        return Prompt(ids, pixels, size, key, question["text"], num_frames)

    @lru_cache(maxsize=1)  # questions about one image, or one clip, follow one another  # noqa: B019
    def _read(self, source: str | io.BytesIO, is_clip: bool) -> tuple[Tensor, tuple[int, int] | None]:
        """An image's views, and its width and height where they matter; or a clip's frames."""
        if isinstance(self.image_processor, ClipProcessor):
            return read_pixels(source, self.image_processor, is_clip, self.image_aspect_ratio == "pad"), None
        if is_clip:
            raise ValueError(f"{source}: expected a picture, got a clip, which this model does not see")
        image = load_image(source)
        return process_images([image], self.image_processor, self), image.size


class Answering:
    """Answer batches of prepared questions.

    Args:
        tokenizer, model: from `load_pretrained_model`, in either format.
        reduction: the reduction in force on the model, or None.
        **generation: what `generate` takes.
    """

    def __init__(self, tokenizer, model, reduction: Reduction | None = None, **generation):
        self.tokenizer, self.model, self.reduction, self.generation = tokenizer, model, reduction, generation
        self.is_original = is_original(model)
        takes_features = takes_encoded(model)
        reads_text = reduction is not None and reduction.read is not None  # and keeps what that asks for
        self.shares_images = (self.is_original or takes_features) and not reads_text

    def __call__(self, prompts: list[Prompt]) -> list[Answer]:
        lengths = [self._image_length(prompt) for prompt in prompts]
        rows = [prompt.ids for prompt in prompts]
        if not self.is_original:
            config, frames = self.model.config, [prompt.num_frames for prompt in prompts]
            rows = [expanded(row, config, *sizes) for row, *sizes in zip(rows, lengths, frames, strict=True)]
        ids, mask = left_padded(rows, self.model.device)
        if self.reduction is not None:
            self.reduction.text = [prompt.text for prompt in prompts]
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=mask, **self._images(prompts), **self.generation)
        new = output if self.is_original else output[:, ids.shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        stats = read_stages(self.reduction, lengths)
        return [Answer(text.strip(), stats) for text, stats in zip(texts, stats, strict=True)]

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError for a prompt that is longer than the model's context, its image included."""
        num_tokens = sum(token != IMAGE_TOKEN_INDEX for token in prompt.ids) + self._image_length(prompt)
        check_context(num_tokens, self.model.config)

    def _images(self, prompts: list[Prompt]) -> dict:
        """The images of a batch, as the model's `generate` takes them: features where prompts share an image."""
        with_image = [prompt for prompt in prompts if prompt.pixels is not None]
        if not with_image:
            return {}
        keys = [prompt.image_key or number for number, prompt in enumerate(with_image)]
        distinct = dict(zip(keys, with_image, strict=True))
        is_mixed = len({prompt.num_frames for prompt in with_image}) > 1  # a stock model has two ways for them
        if len(distinct) == len(with_image) or not self.shares_images or (is_mixed and not self.is_original):
            return self._inputs(with_image)
        shown = [list(distinct).index(key) for key in keys]
        inputs = self._inputs(list(distinct.values()))
        if self.is_original:
            return {"image_features": self.model.embed_images(inputs["images"], inputs["image_sizes"]).select(shown)}
        num_frames = with_image[0].num_frames
        kind = "video" if num_frames else "image"
        encoded = getattr(self.model.base_model, f"get_{kind}_features")(**inputs, return_dict=True)
        if isinstance(encoded, EncodedImages):
            return {ENCODED: {kind: encoded.select(shown)}}
        features, each = pooled(encoded), num_frames or 1
        chosen = [feature for i in shown for feature in features[i * each : (i + 1) * each]]
        if sees_clips(self.model.config):
            chosen = torch.stack(chosen)
        return {ENCODED: {kind: type(encoded)(pooler_output=chosen)}}

    def _inputs(self, prompts: list[Prompt]) -> dict:
        """The pixels of prompts with images, as the model takes them."""
        pixels = [prompt.pixels.to(self.model.device, self.model.dtype) for prompt in prompts]
        sizes = [prompt.image_size for prompt in prompts]
        if self.is_original:
            return {"images": pixels, "image_sizes": sizes}
        if sees_clips(self.model.config):
            return stock_inputs(self.model, pixels, [prompt.num_frames > 0 for prompt in prompts])
        if self.model.config.model_type == "llava":
            return {"pixel_values": torch.cat(pixels)}
        heights_first = torch.tensor([size[::-1] for size in sizes], device=self.model.device)
        return {"pixel_values": pad_sequence(pixels, batch_first=True), "image_sizes": heights_first}

    def _image_length(self, prompt: Prompt) -> int:
        """Visual tokens of a prompt's image before any reduction."""
        if prompt.pixels is None:
            return 0
        if self.is_original and not prompt.num_frames:
            return self.model.image_length(len(prompt.pixels), prompt.image_size)
        if self.is_original:
            return prompt.num_frames * (self.model.tokens_per_view + 1)
        vision = self.model.config.vision_config
        num_tokens = (vision.image_size // vision.patch_size) ** 2
        if prompt.num_frames:
            return prompt.num_frames * (num_tokens + 1)
        if self.model.config.model_type in ("llava", "video_llava"):
            return num_tokens
        sizes = torch.tensor([prompt.image_size[::-1]])
        return image_lengths(self.model.base_model, sizes, num_tokens)[0][0]
