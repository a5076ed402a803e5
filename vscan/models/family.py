"""The protocol of a model: what differs between those that can be reduced. One file a model, found by `model_type`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..compat import pooled
from ..config import ReductionConfig, count
from ..decoder import Decoder
from ..methods.base import Kept, Method, Views
from ..plan import Fitted
from ..prompt import VisualPrompt
from .encoded import EncodedImages, Modality, all_finite
from .install import describe, encode_all, install_on_shell
from .texts import texts_of_call


class Family(ABC):
    """One kind of model, around one model of it.

    Args:
        model: the model that generates.

    Raises:
        ValueError: for another model, or one that is put together in a way not supported.
    """

    def __init__(self, model: nn.Module):
        self.model, self.base = model, model.base_model
        if self.base is model:
            raise ValueError(f"expected the model that generates, got {type(model).__name__} inside it")

    def defaults(self, method: str) -> dict[str, Any]:
        """Hyper-parameters of a method that have other defaults on this model."""
        return {}

    @abstractmethod
    def fit(self, config: ReductionConfig, method: Method) -> Fitted:
        """Check a reduction against the model; `Fitted.of` with what it knows of it."""

    @abstractmethod
    def install(self, reduction) -> Callable[[], None]:
        """Put a reduction in force; returns the function that undoes it."""

    @abstractmethod
    def prompt_of(self, inputs: dict) -> VisualPrompt:
        """Where a call of the model holds its visual tokens, once its pictures are encoded.

        Raises:
            ValueError: for a call without pictures.
        """


class ShellFamily(Family):
    """A stock transformers model, with the parts `language_model` and `get_<name>_features`."""

    # What it sees, and the keyword that brings it.
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values"}
    # What is mixed into its text model.
    decoder: ClassVar[type] = Decoder

    @abstractmethod
    def encode(self, reduction, name: str, original: Callable, call: dict) -> EncodedImages:
        """What `get_<name>_features` gives under a reduction.

        Args:
            original: the model's own method.
            call: its keywords.
        """

    def adopt(self, output) -> EncodedImages | None:
        """What was encoded before the reduction, where it is of use under it; None where it is not."""
        return None

    def shown(self, images: EncodedImages) -> Any:
        """What the shell is given of encoded pictures, where it wants their features in another form."""
        return images

    def install(self, reduction) -> Callable[[], None]:
        modalities = [self.modality(reduction, name) for name in self.pixels]
        return install_on_shell(self.model, reduction, modalities, self.decoder)

    def modality(self, reduction, name: str) -> Modality:
        """How pictures are encoded under a reduction."""
        original = getattr(self.base, f"get_{name}_features")

        def encode(**call) -> EncodedImages:
            return self.encode(reduction, name, original, call)

        return Modality(name, self.pixels[name], encode, self.adopt, self.shown)

    def prompt_of(self, inputs: dict) -> VisualPrompt:
        modalities = [Modality(name, pixels, None, self.adopt) for name, pixels in self.pixels.items()]
        given, kwargs = encode_all(self.base, modalities, dict(inputs))
        prompt = describe(self.base, given, kwargs)
        if prompt is None:
            raise ValueError(f"expected {' or '.join(self.pixels.values())} to plan for, got none")
        return prompt


class ViewFamily(ShellFamily):
    """A stock model whose vision encoder gives views, which are reduced behind it and then put together."""

    # Whether `pack` leaves all tokens and adds none, so that their number is known beforehand.
    packs_all: ClassVar[bool] = True

    @abstractmethod
    def num_views(self, call: dict) -> list[int]:
        """Views of each picture that a call of `get_image_features` brings, from its keywords."""

    @abstractmethod
    def views(self, call: dict, reduction) -> tuple[list[tuple[Views, list[int]]], Tensor]:
        """Run the vision encoder.

        Returns:
            Pictures whose views have one size, in order, each with the views of every picture in it; and whether all
            that the encoder gave is finite, bool [].
        """

    def pack(self, crops: list[Tensor], call: dict, newline: Tensor | None = None) -> list[Tensor]:
        """Put the views of every picture together, as the model does it.

        Args:
            crops: [n, N, D] of each picture; numbers of one channel go the same way.
            newline: [D], instead of the model's own.

        Returns:
            [M, D] of each.
        """
        return [views.flatten(0, 1) for views in crops]

    def with_texts(self, reduction, name: str, batches: list[tuple[Views, list[int]]], call: dict) -> list:
        """The same views, each beside the text of its prompt."""
        of_images = [number for _, numbers in batches for number in numbers]
        height, width = batches[0][0].grid
        crops = [torch.zeros(number, height * width, 1) for number in of_images]
        sizes = [len(picture) for picture in self.pack(crops, call, torch.zeros(1))]
        texts = iter(texts_of_call(reduction, self.base.config, name, self.pixels, sizes, of_images))
        return [(replace(views, text=list(islice(texts, len(views.features)))), numbers) for views, numbers in batches]

    def encode(self, reduction, name: str, original: Callable, call: dict) -> EncodedImages:
        num_views = self.num_views(call)
        pixels = self.pixels[name]
        told = tuple((key, repr(value)) for key, value in sorted(call.items()) if not isinstance(value, Tensor))
        if not reduction.fitted.reduces_views:

            def dense(given: Tensor) -> tuple[list[Tensor], None]:
                images = pooled(original(**{**call, pixels: given, "return_dict": True}))
                return [*images, all_finite(images)], None

            reason = None if self.packs_all else "the model packs crops by the sizes of pictures"
            (*images, finite), _ = encoded_by(
                reduction, dense, call[pixels], self.parts, (tuple(num_views), told), reason
            )
            sizes = [len(image) for image in images]
            return EncodedImages(pooler_output=images, num_views=num_views, num_kept=sizes, finite=finite)
        if reduction.capture is not None:  # what the host reads, it reads once
            sizes = call.get("image_sizes")
            call = {**call, "image_sizes": sizes.cpu() if isinstance(sizes, Tensor) else sizes}

        def reduced(given: Tensor) -> tuple[list[Tensor], list[int | None]]:
            return self.reduced(reduction, name, {**call, pixels: given})

        reason = None
        if reduction.fitted.group == "image" and max(num_views, default=1) > 1:
            reason = "one budget is shared out among the crops of a picture"
        (tokens, kept, finite), num_kept = encoded_by(
            reduction, reduced, call[pixels], self.parts, (tuple(num_views), told), reason
        )
        crops, left = tokens.split(num_views), kept.to(tokens.dtype).unsqueeze(-1).split(num_views)
        ones = torch.ones(1, dtype=crops[0].dtype, device=crops[0].device)
        return EncodedImages(
            pooler_output=self.pack(crops, call),
            # Which are left goes the way of the features, as numbers: what packing cuts away is lost, newlines stay.
            kept=[image[:, 0] > 0 for image in self.pack(left, call, ones)],
            num_views=num_views,
            num_kept=num_kept if self.packs_all and None not in num_kept else None,
            finite=finite,
        )

    @property
    def parts(self) -> list[nn.Module]:
        """What encodes pictures: the modules of the base model without the language model."""
        return [part for part in self.base.children() if part is not self.base.language_model]

    def reduced(self, reduction, name: str, call: dict) -> tuple[list[Tensor], list[int | None]]:
        """Run the vision encoder, and let the method reduce what it gives: tensors only, but for texts.

        Returns:
            The views' tokens [V, N, D], which are left, bool [V, N], and whether all are finite, bool []; and how many
            are left of each picture, with a None where that is not known.
        """
        batches, finite = self.views(call, reduction)
        if reduction.read is not None:
            batches = self.with_texts(reduction, name, batches, call)
        found = [reduce_views(reduction.fitted, views, of_images) for views, of_images in batches]
        tokens, left = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in list(zip(*found, strict=True))[:2]
        )
        return [tokens, left, finite], [number for _, _, numbers in found for number in numbers or [None]]


def encoded_by(
    reduction, function: Callable, pixels: Tensor, parts: list[nn.Module], key: tuple, reason: str | None = None
) -> tuple[list[Tensor], Any]:
    """What a function makes of pixels, by a recorded graph where the reduction asks for one and it can be recorded.

    Args:
        function, pixels, parts, key: as `vscan.capture.Capture.encode` takes them.
        reason: why it cannot; None where nothing is known.
    """
    capture = reduction.capture
    if capture is None:
        return function(pixels)
    if reduction.tower_memory is not None:
        reason = "what the tower gives is remembered"
    if reduction.read is not None and reduction.fitted.reduces_views:
        reason = "the method reads text"
    if reduction.fitted.frame_cls is not None:
        reason = "the model sees clips"
    return capture.encode(function, pixels, parts, key, reason)


def reduce_views(
    fitted: Fitted, views: Views, of_images: list[int], num_frames: int = 1
) -> tuple[Tensor, Tensor, list[int] | None]:
    """Let a method reduce views, and lay its tokens out at their slots.

    Args:
        of_images: views of each picture.
        num_frames: of a clip, where one budget is for all of its frames and they are one view.

    Returns:
        [V, N, D] in raster order, a kept token in its slot and zeros in all others; which slots are kept, bool [V, N];
        and how many are left of each picture, None where the method kept fewer than it was asked for.
    """
    method, num_tokens = fitted.method, views.grid[0] * views.grid[1]
    num_views, is_whole = len(views.features), fitted.group == "image" and views.layout is not None
    group = num_views * num_tokens if is_whole else num_tokens
    num = count(group, fitted.visual_tokens, num_views if is_whole else num_frames if fitted.group == "image" else 1)
    if num == group:
        slots = torch.arange(num_tokens, device=views.features.device).expand(num_views, -1)
        kept = Kept(slots, views.project(views.features))
    else:
        kept = method.encode(views, num)
    slots = kept.slots.to(views.features.device)
    if kept.values is None:
        features = views.features.flatten(0, 1).unsqueeze(0) if is_whole else views.features
        kept = kept._replace(values=views.project(features.take_along_dim(slots.unsqueeze(-1), dim=1)))
    groups = torch.arange(len(slots), device=slots.device).unsqueeze(1)
    if kept.valid is not None:
        slots = torch.where(kept.valid, slots, group)  # a place that is cut off
    tokens = kept.values.new_zeros(len(slots), group + 1, kept.values.shape[-1])
    tokens = tokens.index_put_((groups, slots), kept.values)[:, :-1]
    left = torch.zeros(len(slots), group + 1, dtype=torch.bool, device=slots.device).scatter_(1, slots, True)[:, :-1]
    shape = (num_views, num_tokens)
    num_kept = None if kept.valid is not None else [num] if is_whole else [num * number for number in of_images]
    return tokens.reshape(*shape, -1), left.reshape(shape), num_kept
