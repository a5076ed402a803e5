"""`load(path)`: the model of a checkpoint of any family, with its family's own preparation of prompts and pictures.

A family is found by the `model_type` of the checkpoint's config. A new one is a line here and a module that gives a
`Checkpoint`; nothing else of vscan names the packages that hold them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import ReductionConfig
from ..methods import make_method
from .checkpoint import check_config

if TYPE_CHECKING:  # scripts read checkpoints where no library is installed
    from PIL import Image

CHECKPOINTS = {
    "llava": "llava.checkpoint:LlavaCheckpoint",
    "llava_llama": "llava.checkpoint:LlavaCheckpoint",
    "llava_next": "llava.checkpoint:LlavaCheckpoint",
    "video_llava": "llava.checkpoint:LlavaCheckpoint",
    "qwen2_5_vl": "qwen.checkpoint:QwenCheckpoint",
}


@dataclass(frozen=True)
class Panel:
    """A picture that is shown: one view, or `tiles` (height, width) of them from `first` on, in raster order."""

    image: Image.Image
    first: int = 0
    tiles: tuple[int, int] = (1, 1)


class Sight(NamedTuple):
    """What a model sees of a prompt's picture.

    Args:
        panels: the picture as the vision encoder gets it, at least one.
        grid: (height, width) of a view in tokens.
        origins: of each visual token of the prompt where it comes from, view * height * width + token; -1 for what
            comes from no view, such as a newline.
    """

    panels: list[Panel]
    grid: tuple[int, int]
    origins: list[int]


class Parts(NamedTuple):
    """What answers questions, as it is loaded."""

    tokenizer: Any
    model: Any
    image_processor: Any


class Loaded(Parts, ABC):
    """A loaded checkpoint, (tokenizer, model, image processor), and what its family does with questions.

    A question is a dict with `text` and, as its family's commands have it, `image`.
    """

    __slots__ = ()

    @abstractmethod
    def preparation(self, images: str | Path | Callable, conv_mode: str, reduction=None) -> Callable[[dict], Any]:
        """What makes a prepared prompt of a question; it holds no model, so that it runs in worker processes.

        Args:
            images: the folder of the pictures, or a function from a question to a picture's file or content.
            conv_mode: conversation template, for families whose checkpoints have none.
            reduction: in force on the model, or None.
        """

    @abstractmethod
    def answering(self, reduction=None, **generation) -> Any:
        """What answers a list of prepared prompts, and has `check(prompt)`, a ValueError for one that is too long.

        Args:
            reduction: in force on the model, or None.
            **generation: what `generate` takes.
        """

    @abstractmethod
    def sight(self, prompt: Any, prepare: Callable) -> Sight:
        """What the model sees of a prompt that `prepare` made."""


class Checkpoint(ABC):
    """A checkpoint folder, judged by its files alone: before torch is imported and any weight is read.

    Args:
        folder: where it lies.

    Attributes:
        config: its config.json.
        num_tokens: visual tokens of a view; None where views vary in size.

    Raises:
        FileNotFoundError, ValueError: if it is not whole, or of another kind.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        self.config, self.num_tokens = self._check()

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return (self.config.get("text_config") or self.config).get("num_hidden_layers", 32)

    def fields(self, method: str) -> dict[str, Any]:
        """Hyper-parameters of a method that the checkpoint sets."""
        return (self.config.get("reduction") or {}).get(method) or {}

    def settled(self, reduction: ReductionConfig) -> ReductionConfig:
        """The reduction with the budgets that its average or its preset stands for, checked by the files.

        Raises:
            ValueError: for a layer, a count, an average or a preset that there is not.
        """
        if reduction.average is not None or reduction.preset is not None:
            from ..plan import scheduled

            method = make_method(reduction.method, {**self.fields(reduction.method), **reduction.fields})
            reduction = scheduled(reduction, method, self.num_layers, self.num_tokens)
        self.check_reduction(reduction)
        return reduction

    @abstractmethod
    def _check(self) -> tuple[dict, int | None]:
        """Check the files; `config` and `num_tokens`."""

    @abstractmethod
    def check_reduction(self, reduction: ReductionConfig) -> None:
        """Raise ValueError for a layer that the decoder does not have, or a count above what arrives there."""

    @abstractmethod
    def check_template(self, conv_mode: str) -> None:
        """Raise ValueError for a conversation template that there is not."""

    @abstractmethod
    def load(self, device: str | None = None, dtype: str = "auto", attn_implementation: str | None = None) -> Loaded:
        """Load it; `load` says what the arguments are."""

    @staticmethod
    @abstractmethod
    def at_hand(tokenizer, model, image_processor) -> Loaded:
        """A model of the family that has been loaded."""


def _family(model_type: str | None, what: str) -> type[Checkpoint]:
    if model_type not in CHECKPOINTS:
        raise ValueError(
            f"{what}: expected a config with one of the model types {', '.join(CHECKPOINTS)}, "
            f"got model_type {model_type!r}"
        )
    module, _, name = CHECKPOINTS[model_type].partition(":")
    return getattr(import_module(module), name)


def checkpoint_of(path: str | Path) -> Checkpoint:
    """Check a checkpoint's folder; imports no torch.

    Raises:
        FileNotFoundError, ValueError: if it is not whole, or of a family that is not known.
    """
    return _family(check_config(path).get("model_type"), f"model path {str(path)!r}")(path)


def load(
    path: str | Path, device: str | None = None, dtype: str = "auto", attn_implementation: str | None = None
) -> Loaded:
    """Load a checkpoint of any family.

    Args:
        path: its folder.
        device: "cuda", "cuda:1", "cpu"; None is a GPU where there is one.
        dtype: "auto" (the checkpoint's own; on a CPU, float32 instead of float16), or a dtype's name.
        attn_implementation: "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.

    Returns:
        (tokenizer, model, image processor), with the methods of `Loaded`.

    Raises:
        FileNotFoundError, ValueError: for whatever keeps it from loading.
    """
    return checkpoint_of(path).load(device, dtype, attn_implementation)


def at_hand(tokenizer, model, image_processor) -> Loaded:
    """`load` for a model that has been loaded.

    Raises:
        ValueError: for a model of a family that is not known.
    """
    return _family(model.config.model_type, type(model).__name__).at_hand(tokenizer, model, image_processor)
