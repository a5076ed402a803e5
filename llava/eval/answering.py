"""How a LLaVA answers: a question becomes ids and pixels in a worker process, a batch of them becomes answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import build_prompt
from llava.mm_utils import expand_image_tokens, load_image, process_images, tokenizer_image_token
from vscan.api import Reduction
from vscan.eval.runner import Answer


def is_original(model) -> bool:
    """Whether a model came from a checkpoint in the original format."""
    return hasattr(model, "encode_images")


@dataclass(frozen=True)
class Preparation:
    """From a question to (ids [L] with IMAGE_TOKEN_INDEX for the image, pixels [1, 3, H, W] or None).

    Runs in worker processes, so it holds no model. Images are padded to a square where the checkpoint says so, and
    always for Hugging Face checkpoints, whose own processor would crop them: answers do not depend on the format.
    """

    tokenizer: Any
    image_processor: Any
    image_folder: str
    conv_mode: str
    image_aspect_ratio: str | None = "pad"
    mm_use_im_start_end: bool = False

    @classmethod
    def of(cls, model, *args) -> "Preparation":
        """The preparation for a model; further arguments are the first fields."""
        if not is_original(model):
            return cls(*args)
        aspect_ratio = getattr(model.config, "image_aspect_ratio", None)
        return cls(*args, aspect_ratio, getattr(model.config, "mm_use_im_start_end", False))

    def __call__(self, question: dict) -> tuple[list[int], Tensor | None]:
        pixels = None
        if question.get("image"):
            image = load_image(Path(self.image_folder) / question["image"])
            pixels = process_images([image], self.image_processor, self)
        prompt = build_prompt(question["text"], self.conv_mode, self.mm_use_im_start_end, pixels is not None)
        return tokenizer_image_token(prompt, self.tokenizer), pixels


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

    def __call__(self, items: list[tuple[list[int], Tensor | None]]) -> list[Answer]:
        rows = [ids for ids, _ in items]
        pixels = [image for _, image in items if image is not None]
        images = {}
        if pixels:
            pixels = torch.cat(pixels).to(self.model.device, self.model.dtype)
            images = {"images" if self.is_original else "pixel_values": pixels}
        if not self.is_original:
            rows = [expand_image_tokens(ids, self.model.config.image_token_id, self.tokens_per_image) for ids in rows]
        length = max(map(len, rows))
        pad = self.generation.get("pad_token_id") or 0
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=mask, **images, **self.generation)
        new = output if self.is_original else output[:, length:]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Answer(text.strip(), stats) for text, stats in zip(texts, self._stats(items), strict=True)]

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens of one image before any reduction."""
        if self.is_original:
            return self.model.tokens_per_image
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def _stats(self, items) -> list[dict]:
        """Visual tokens of each row: before reduction, and [layer, tokens] for every stage."""
        counts = [ids.count(IMAGE_TOKEN_INDEX) * self.tokens_per_image for ids, _ in items]
        stages = [[[0, number]] for number in counts]
        if self.reduction is not None and any(counts):
            rows = self.reduction.stats().rows
            repeats = len(rows) // len(items)  # beams
            stages = [row.stages if row.visual_tokens else [[0, 0]] for row in rows[::repeats]]
        return [{"visual_tokens": number, "stages": stage} for number, stage in zip(counts, stages, strict=True)]
