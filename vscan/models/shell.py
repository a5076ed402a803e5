"""What every multimodal shell of transformers needs to be reduced: its decoder swapped, its visual tokens handed over,
and what cannot work refused. Instances only, and all of it undone by one ExitStack."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..decoder import Decoder, prompt_columns
from ..prompt import VisualPrompt, padding_mask


class EncodedImages(BaseModelOutputWithPooling):
    """Images encoded under a reduction: `pooler_output` is a list of [M_i, D], NaN where a token is dropped."""


@lru_cache(maxsize=8)
def reduced_class(original: type) -> type:
    """`original` with the decoder loop mixed in; it keeps its name, by which transformers knows what it can record."""
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": Decoder.__doc__}
    return type(original.__name__, (Decoder, original), names)


def swap_decoder(undo: ExitStack, text_model: nn.Module, reduction) -> None:
    """Give one text model the decoder loop, without copying a weight.

    Raises:
        ValueError: if it has one already.
    """
    original = type(text_model)
    if issubclass(original, Decoder):
        raise ValueError("expected a dense model, got one that is reduced already: remove that reduction first")
    undo.callback(setattr, text_model, "__class__", original)
    text_model.__class__ = reduced_class(original)
    undo.callback(delattr, text_model, "reduction")
    text_model.reduction = reduction
    # accelerate calls the forward that it saw when it spread the model.
    dispatched = text_model.__dict__.get("_old_forward")
    if dispatched is not None:
        undo.callback(setattr, text_model, "_old_forward", dispatched)
        text_model._old_forward = type(text_model).forward.__get__(text_model)


def install_on_shell(
    model: nn.Module,
    reduction,
    images_of: Callable[[dict], tuple[list[int], list[int]]],
    get_image_features: Callable | None,
    num_kept: int | None,
) -> Callable[[], None]:
    """Install a reduction on a stock model with the parts `language_model` and `get_image_features`.

    Args:
        images_of: from the keywords of a call that brings images to their placeholders and their views.
        get_image_features: replaces the model's own; None leaves it.
        num_kept: tokens of a view that it leaves, or None where that depends on the picture.

    Returns:
        The function that undoes it.
    """
    base = model.base_model

    def describe(kwargs: dict) -> VisualPrompt | None:
        input_ids = kwargs.get("input_ids")
        if kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs"):
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "expected input_ids with pixel_values while visual tokens are reduced, got inputs_embeds: "
                    "which of them are visual cannot be told"
                )
            return None
        if input_ids is None:
            raise ValueError("expected input_ids beside pixel_values while visual tokens are reduced, got None")
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if encoded is not None and get_image_features is not None and not isinstance(encoded, EncodedImages):
            raise ValueError("expected mm_encoder_outputs that were encoded under this reduction, got dense ones")
        visual = input_ids == base.config.image_token_id
        mask = padding_mask(kwargs.get("attention_mask"), input_ids.shape[1])
        prompt = VisualPrompt.read(visual, mask, *images_of(kwargs), num_kept)
        if num_kept == reduction.num_tokens:
            prompt.num_kept = prompt.num_visual
        return prompt

    with ExitStack() as undo:
        swap_decoder(undo, base.language_model, reduction)
        hand_over(undo, base, describe)
        if get_image_features is not None:
            replace_method(undo, base, "get_image_features", get_image_features)
        guard_generate(undo, model)
        refuse_labels(undo, model)
        return undo.pop_all().close


def hand_over(undo: ExitStack, base: nn.Module, describe: Callable[[dict], VisualPrompt | None]) -> None:
    """Tell the decoder where the visual tokens are, in every call of the shell that brings some.

    Args:
        base: the multimodal model without its head.
        describe: from the call's keywords to a VisualPrompt, or None where the call brings no images.
    """
    names = list(inspect.signature(base.forward).parameters)

    def before(module, args, kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        prompt = describe(kwargs)
        return (), kwargs if prompt is None else {**kwargs, "visual_prompt": prompt}

    def after(module, args, kwargs, output):
        prompt = kwargs.get("visual_prompt")
        if prompt is not None and not prompt.entered:
            raise RuntimeError(
                f"the reduced decoder of {type(module).__name__} was not entered: something replaced the forward of "
                "its language model, and nothing would be reduced in it"
            )

    undo.callback(base.register_forward_pre_hook(before, with_kwargs=True).remove)
    undo.callback(base.register_forward_hook(after, with_kwargs=True).remove)


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
    if (kwargs.get("cache_implementation") or config.cache_implementation) == "paged":
        raise ValueError("expected a dynamic or a static cache while visual tokens are reduced, got 'paged'")
    cache = kwargs.get("past_key_values")
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
        token = prompt_columns.set(None if ids is None else ids.shape[1])
        try:
            return original(**kwargs)
        finally:
            prompt_columns.reset(token)

    replace_method(undo, model, "generate", generate)


def refuse_labels(undo: ExitStack, model: nn.Module) -> None:
    """Labels do not line up with a shortened output: say so instead of computing a wrong loss."""

    def before(module, args, kwargs):
        if kwargs.get("labels") is not None:
            raise ValueError(
                "expected no labels while visual tokens are reduced: the output is shorter than the input. Compute the "
                "loss from the logits; `reduction.kept()` says which column of the prompt each of them belongs to"
            )

    undo.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
