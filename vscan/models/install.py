"""What every multimodal shell of transformers needs to be reduced: its decoder swapped, its visual tokens handed over,
and what cannot work refused. Instances only, and all of it undone by one ExitStack."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import reduce

import torch
from torch import Tensor, nn

from ..cache import state_of
from ..checks.guards import check_finite, check_handed_out, generating, generation
from ..classes import mixed
from ..compat import (
    CACHE_IMPLEMENTATIONS,
    ENCODED,
    LibraryChanged,
    encoded,
    is_mrope,
    rebind_forward,
    take_cache,
    takes_encoded,
)
from ..decoder import Decoder
from ..masks import padding_mask
from ..prompt import VisualPrompt
from .encoded import EncodedImages, Modality


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


def install_on_shell(model: nn.Module, reduction, modalities: list[Modality]) -> Callable[[], None]:
    """Install a reduction on a stock model with the parts `language_model` and `get_image_features`.

    Args:
        modalities: what the model sees.

    Returns:
        The function that undoes it.
    """
    base = model.base_model
    with ExitStack() as undo:
        swap_class(undo, base.language_model, Decoder, reduction)
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
            return kwargs[part.pixels]
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
    takes_images = takes_encoded(base)

    def before(module, args, kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {}
        for part in modalities:
            images = encoded(kwargs, part.name)
            pixels = kwargs.get(part.pixels)
            if images is None and pixels is not None and len(pixels):
                encode = getattr(base, f"get_{part.name}_features")
                wanted = inspect.signature(encode).parameters.keys() & kwargs.keys()
                images = encode(**{name: kwargs[name] for name in wanted})
                kwargs[part.pixels] = None if takes_images else images
            if images is not None:
                given[part] = images
        if given and takes_images:
            kwargs[ENCODED] = {**(kwargs.get(ENCODED) or {}), **{part.name: images for part, images in given.items()}}
        prompt = describe(base, given, kwargs)
        if prompt is not None:
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
        if not isinstance(images, EncodedImages) and part.adopt is not None:
            images = part.adopt(images)
        if not isinstance(images, EncodedImages):
            raise ValueError("expected images that were encoded under this reduction, got dense ones")
        images = images.expanded()
        check_finite(images.finite, images.pooler_output[0].dtype)
        sizes = [len(features) for features in images.pooler_output]
        kept = None if images.kept is None else torch.cat(images.kept)
        visual = input_ids == getattr(base.config, f"{part.name}_token_id")
        prompts.append(VisualPrompt.read(visual, mask, sizes, images.num_views, images.num_kept, kept))
    return reduce(VisualPrompt.joined, prompts)


def check_no_pictures(base: nn.Module, input_ids: Tensor | None, modalities: list[Modality]) -> None:
    """Raise ValueError where a prompt names pictures and none came; one token is no prompt, and is not read."""
    if input_ids is None or input_ids.shape[1] == 1 or input_ids.is_meta:
        return
    for part in modalities:
        number = int((input_ids == getattr(base.config, f"{part.name}_token_id")).sum())
        if number:
            raise ValueError(f"expected {part.pixels} for the {number} {part.name} tokens of the prompt, got none")


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


def replace_method(undo: ExitStack, instance: nn.Module, name: str, method: Callable) -> None:
    """Replace a method of one instance; its signature stays readable, because generate filters keywords by it."""
    functools.update_wrapper(method, getattr(instance, name))
    if name in instance.__dict__:  # somebody else's
        undo.callback(instance.__dict__.__setitem__, name, instance.__dict__[name])
    else:
        undo.callback(instance.__dict__.pop, name)
    instance.__dict__[name] = method


def check_generation(model, kwargs: dict) -> None:
    """Refuse what cannot work with a prompt that gets shorter.

    Args:
        kwargs: the keywords of `generate`.

    Raises:
        ValueError: for assisted decoding, prefill in chunks, a paged cache, or a cache that holds an earlier turn.
    """
    config = kwargs.get("generation_config") or model.generation_config
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "prefill_chunk_size"):
        value = kwargs.get(name) or getattr(config, name, None)
        if value is not None:
            raise ValueError(f"expected {name}=None while visual tokens are reduced, got {value!r}")
    kind = kwargs.get("cache_implementation") or config.cache_implementation
    if kind not in CACHE_IMPLEMENTATIONS:
        raise ValueError(f"expected a dynamic or a static cache while visual tokens are reduced, got {kind!r}")
    cache = take_cache(dict(kwargs))
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"expected an empty cache while visual tokens are reduced, got one of {int(cache.get_seq_length())} "
            "tokens: re-using a cache across turns is not supported"
        )


def guard_generate(undo: ExitStack, model: nn.Module) -> None:
    """Check every call of `generate`, and let the decoder know how long its prompt is."""
    original = model.generate
    names = list(inspect.signature(original).parameters)

    def generate(*args, **kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        check_generation(model, kwargs)
        ids = kwargs.get("input_ids") if kwargs.get("inputs") is None else kwargs["inputs"]
        with generating(None if ids is None else ids.shape[1]):
            return original(**kwargs)

    replace_method(undo, model, "generate", generate)
    if hasattr(model, "generate_batch"):

        def generate_batch(*args, **kwargs):
            raise ValueError(
                "expected generate while visual tokens are reduced, got generate_batch: its cache is paged"
            )

        replace_method(undo, model, "generate_batch", generate_batch)


def refuse_copies(undo: ExitStack, module: nn.Module) -> None:
    """A copy or a pickle of a reduced model would answer with parts of the original: say so instead."""

    def refuse(*args):
        raise ValueError(
            f"expected a dense model to copy or to pickle, got {type(module).__name__} while visual tokens are "
            "reduced: remove the reduction first, and apply one to the copy"
        )

    for name in ("__deepcopy__", "__reduce_ex__"):
        undo.callback(module.__dict__.pop, name)
        module.__dict__[name] = refuse


def refuse_labels(undo: ExitStack, model: nn.Module) -> None:
    """Labels do not line up with a shortened output: say so instead of computing a wrong loss."""

    def before(module, args, kwargs):
        if kwargs.get("labels") is not None:
            raise ValueError(
                "expected no labels while visual tokens are reduced: the output is shorter than the input. Compute the "
                "loss from the logits; `reduction.kept()` says which column of the prompt each of them belongs to"
            )

    undo.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
