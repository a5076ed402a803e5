"""What every multimodal shell of transformers needs to be reduced: its decoder swapped, its visual tokens handed over,
and what cannot work refused. Instances only, and all of it undone by one ExitStack."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn

from ..cache import state_of
from ..checks.guards import check_finite, check_handed_out, generating, generation
from ..classes import mixed
from ..compat import (
    ENCODED,
    LibraryChanged,
    encoded,
    is_mrope,
    rebind_forward,
    take_cache,
    takes_encoded,
)
from ..masks import padding_mask
from ..prompt import VisualPrompt
from .encoded import EncodedImages, Modality
from .refusals import check_no_pictures, guard_generate, refuse_copies, refuse_labels, replace_method


def swap_class(undo: ExitStack, module: nn.Module, mixin: type, reduction) -> None:
    """Mix a reduced forward into one module, without copying a weight, and put a reduction in force there.

    Args:
        mixin: has a `reduction`, None in the class; a module of that class is left what it is.

    Raises:
        ValueError: if a reduction is in force there.
    """
    if getattr(module, "reduction", None) is not None:
        raise ValueError("expected a dense model, got one that is reduced already: remove that reduction first")
    original = type(module)
    if not issubclass(original, mixin):
        undo.callback(setattr, module, "__class__", original)
        module.__class__ = mixed(original, mixin)
    undo.callback(delattr, module, "reduction")
    module.reduction = reduction
    unbind = rebind_forward(module)
    if unbind is not None:
        undo.callback(unbind)


def install_on_shell(model: nn.Module, reduction, modalities: list[Modality], decoder: type) -> Callable[[], None]:
    """Install a reduction on a stock model with the parts `language_model` and `get_image_features`.

    Args:
        modalities: what the model sees.
        decoder: `vscan.decoder.Decoder`, or what overrides a part of it.

    Returns:
        The function that undoes it.
    """
    base = model.base_model
    with ExitStack() as undo:
        swap_class(undo, base.language_model, decoder, reduction)
        for part in modalities:
            name = f"get_{part.name}_features"
            replace_method(undo, base, name, features_of(part, getattr(base, name)))
        hand_over(undo, base, modalities)
        guard_generate(undo, model)
        refuse_labels(undo, model)
        for part in (model, base, base.language_model):
            refuse_copies(undo, part)
        return undo.pop_all().close


def features_of(part: Modality, original: Callable) -> Callable:
    """What stands in for a model's `get_<name>_features`: takes what that takes, and gives an `EncodedImages`."""
    names = list(inspect.signature(original).parameters)

    def get_features(*args, **kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        if isinstance(kwargs.get(part.pixels), EncodedImages):  # before 5.18 they come in place of the pixels
            return part.shown(kwargs[part.pixels])
        images = part.encode(**kwargs)
        call = generation.get()
        if call is not None:
            call.encoded = True
        return images

    return get_features


def hand_over(undo: ExitStack, base: nn.Module, modalities: list[Modality]) -> None:
    """In every call of the shell that brings pictures: encode them, unless `generate` has, and tell the decoder where
    their tokens are and which of them are left.

    Args:
        base: the multimodal model without its head.
    """
    names = list(inspect.signature(base.forward).parameters)

    def before(module, args, kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        given, kwargs = encode_all(base, modalities, kwargs)
        prompt = describe(base, given, kwargs)
        if prompt is not None:
            if ENCODED in kwargs:
                of_ours = {part: images for part, images in given.items() if isinstance(images, EncodedImages)}
                kwargs[ENCODED] |= {part.name: part.shown(images) for part, images in of_ours.items()}
            return (), {**kwargs, "visual_prompt": prompt}
        for name, value in kwargs.items():
            parts = value.values() if isinstance(value, dict) else (value,)
            if any(isinstance(part, EncodedImages) for part in parts):
                raise LibraryChanged("encoded pictures under a keyword that is known here", name)
        following = following_positions(base, kwargs)
        if following is None:
            check_no_pictures(base, kwargs.get("input_ids"), modalities)
        elif kwargs.get("position_ids") is None:
            kwargs["position_ids"] = following
        return (), kwargs

    def after(module, args, kwargs, output):
        if kwargs.get("visual_prompt") is not None:
            check_handed_out(module, kwargs["visual_prompt"], kwargs, output)

    undo.callback(base.register_forward_pre_hook(before, with_kwargs=True).remove)
    undo.callback(base.register_forward_hook(after, with_kwargs=True).remove)


def encode_all(base: nn.Module, modalities: list[Modality], kwargs: dict) -> tuple[dict[Modality, object], dict]:
    """Encode the pictures of a call of the shell, unless `generate` has.

    Args:
        base: the multimodal model without its head.
        kwargs: of the call.

    Returns:
        What was encoded of each modality that the call brings, and the call's keywords with that in them.
    """
    given = {}
    for part in modalities:
        images = encoded(kwargs, part.name)
        pixels = kwargs.get(part.pixels)
        if images is None and pixels is not None and len(pixels):
            encode = getattr(base, f"get_{part.name}_features")
            wanted = inspect.signature(encode).parameters.keys() & kwargs.keys()
            with generating(kwargs.get("input_ids")) if generation.get() is None else nullcontext():
                images = encode(**{name: kwargs[name] for name in wanted})
            kwargs[part.pixels] = None if takes_encoded(base) else images
        if images is not None:
            given[part] = images
    if given and takes_encoded(base):
        kwargs[ENCODED] = {**(kwargs.get(ENCODED) or {}), **{part.name: images for part, images in given.items()}}
    return given, kwargs


def describe(base: nn.Module, given: dict[Modality, object], kwargs: dict) -> VisualPrompt | None:
    """Where the visual tokens of a call of the shell are, and which are left; None for a call without pictures.

    Args:
        base: the multimodal model without its head.
        given: the encoded pictures of each modality that the call brings.
        kwargs: of the call.

    Raises:
        ValueError: for pictures whose tokens cannot be told, that were encoded elsewhere, or that are not finite.
    """
    input_ids = kwargs.get("input_ids")
    if not given:
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "expected input_ids with pixel_values while visual tokens are reduced, got inputs_embeds: "
                "which of them are visual cannot be told"
            )
        return None
    if input_ids is None:
        raise ValueError("expected input_ids beside pixel_values while visual tokens are reduced, got None")
    mask = padding_mask(kwargs.get("attention_mask"), input_ids.shape[1])
    prompts = []
    for part, images in given.items():
        if not isinstance(images, EncodedImages):
            images = part.adopt(images)
        if images is None:
            raise ValueError("expected images that were encoded under this reduction, got dense ones")
        images = images.expanded()
        check_finite(images.finite, images.pooler_output[0].dtype)
        sizes = [len(features) for features in images.pooler_output]
        kept, apart = (None if masks is None else torch.cat(masks) for masks in (images.kept, images.apart))
        visual = input_ids == getattr(base.config, f"{part.name}_token_id")
        given_of_each = (images.num_views, images.num_kept, kept, apart, images.num_apart)
        prompts.append(VisualPrompt.read(visual, mask, sizes, *given_of_each))
    return reduce(VisualPrompt.joined, prompts)


def following_positions(base: nn.Module, kwargs: dict) -> Tensor | None:
    """Positions of what follows a reduced prompt: a shell would count columns of the cache, and these got fewer.

    Args:
        base: the multimodal model without its head.
        kwargs: of a call of it that brings no pictures.

    Returns:
        Long [B or 1, n], [3, B, n] for M-RoPE; None where no reduced prompt came before.
    """
    new = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
    cache = take_cache(dict(kwargs))
    state = state_of(cache, new.shape[1])
    if state is None:
        return None
    positions = state.positions_after(cache.get_seq_length(), new.shape[1])
    return positions.expand(3, new.shape[0], -1) if is_mrope(base.language_model) else positions
