"""How Qwen2.5-VL answers: a question becomes ids and patches in a worker process, a batch of them becomes answers."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen.images import process_image
from vscan.api import Reduction
from vscan.eval.answering import check_context, left_padded, read_stages
from vscan.eval.runner import Answer
from vscan.io.images import on_white, read_image

SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Prompt:
    """A prepared question.

    Args:
        ids: token ids, the image token once for every visual token.
        pixels: the picture's patches [n, 3 * 2 * 14 * 14], or None.
        grid: int64 [1, 3]: 1, patch rows, patch columns; or None.
        visual_tokens: how many there are.
        resized: (width, height) of the picture that the model sees, in pixels, or None.
        text: the question.
    """

    ids: list[int]
    pixels: Tensor | None = None
    grid: Tensor | None = None
    visual_tokens: int = 0
    resized: tuple[int, int] | None = None
    text: str = ""


@dataclass(frozen=True)
class Preparation:
    """From a question to a `Prompt`, as published: system message, picture, text. Holds no model: it runs in workers.

    Args:
        tokenizer, image_processor: from `load_pretrained_model`.
        image_token: its id.
        find_image: from a question to its picture's file or content; None for a question without one.
        budget: least and most pixels of a picture.
    """

    tokenizer: Any
    image_processor: Any
    image_token: int
    find_image: Callable[[dict], str | io.BytesIO | None]
    budget: tuple[int, int]

    def __call__(self, question: dict) -> Prompt:
        source = self.find_image(question)
        ids = self._ids(question["text"], source is not None)
        if source is None:
            return Prompt(ids, text=question["text"])
        pixels, grid = process_image(read_image(source, on_white), self.image_processor, self.budget)
        _, rows, columns = grid[0].tolist()
        number = rows * columns // self.image_processor.merge_size**2
        place = ids.index(self.image_token)
        ids = [*ids[:place], *[self.image_token] * number, *ids[place + 1 :]]
        patch = self.image_processor.patch_size
        return Prompt(ids, pixels, grid, number, (columns * patch, rows * patch), question["text"])

    def _ids(self, text: str, has_image: bool) -> list[int]:
        """The prompt's ids, with one image token where there is a picture."""
        content = [{"type": "image"}] * has_image + [{"type": "text", "text": text}]
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = list(self.tokenizer(prompt).input_ids)
        if ids.count(self.image_token) != has_image:
            raise ValueError(
                f"expected a prompt with {int(has_image)} image tokens, got {ids.count(self.image_token)}: the "
                f"question's text must not hold any, {text[:60]!r}"
            )
        return ids


class Answering:
    """Answer batches of prepared questions.

    Args:
        tokenizer, model: from `load_pretrained_model`.
        reduction: the reduction in force on the model, or None.
        **generation: what `generate` takes; the checkpoint's own generation config stays in force below it.
    """

    def __init__(self, tokenizer, model, reduction: Reduction | None = None, **generation):
        self.tokenizer, self.model, self.reduction, self.generation = tokenizer, model, reduction, generation

    def __call__(self, prompts: list[Prompt]) -> list[Answer]:
        ids, mask = left_padded([prompt.ids for prompt in prompts], self.model.device)
        if self.reduction is not None:
            self.reduction.text = [prompt.text for prompt in prompts]
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=mask, **self._images(prompts, ids), **self.generation)
        texts = self.tokenizer.batch_decode(
            output[:, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        answers = []
        stats = read_stages(self.reduction, [prompt.visual_tokens for prompt in prompts])
        for prompt, text, stages in zip(prompts, texts, stats, strict=True):
            resized = {} if prompt.resized is None else {"resized": list(prompt.resized)}
            answers.append(Answer(text.strip(), {**stages, **resized}))
        return answers

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError for a prompt that is longer than the model's context."""
        check_context(len(prompt.ids), self.model.config)

    def _images(self, prompts: list[Prompt], ids: Tensor) -> dict:
        """The pictures of a batch, as the model's `generate` takes them."""
        shown = [prompt for prompt in prompts if prompt.pixels is not None]
        if not shown:
            return {}
        return {
            "pixel_values": torch.cat([prompt.pixels for prompt in shown]).to(self.model.device, self.model.dtype),
            "image_grid_thw": torch.cat([prompt.grid for prompt in shown]).to(self.model.device),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
        }
