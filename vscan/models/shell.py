"""What every multimodal shell of transformers needs to be reduced: its decoder swapped, its visual tokens handed over,
and what cannot work refused. Instances only, and all of it undone by one ExitStack."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, reduce

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..decoder import Decoder, prompt_columns
from ..masks import padding_mask
from ..prompt import VisualPrompt


class EncodedImages(BaseModelOutputWithPooling):
    """Images encoded under a reduction: `pooler_output` is a list of [M_i, D], NaN where a token is dropped."""


@dataclass(frozen=True)
class Modality:
    """Images or videos, as a shell takes them.

    Args:
        name: "image" or "video": the model has a `get_<name>_features` and a `<name>_token_id`.
        pixels: the keyword that brings them.
        sizes_of: from the keywords of a call that brings some to the placeholders, the views and the kept tokens of
            each; None in place of the kept tokens where they depend on the picture.
        get_features: replaces the model's own; None leaves it.
    """

    name: str
    pixels: str
    sizes_of: Callable[[dict], tuple[list[int], list[int], list[int] | None]]
    get_features: Callable | None

    def encoded(self, kwargs: dict):
        """What generate encoded before it called the shell, or None."""
        return (kwargs.get("mm_encoder_outputs") or {}).get(self.name)


@lru_cache(maxsize=8)
def reduced_class(original: type, mixin: type) -> type:
    """`original` with `mixin` mixed in; it keeps its name, by which transformers knows what it can record."""
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": mixin.__doc__}
    return type(original.__name__, (mixin, original), names)


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
        module.__class__ = reduced_class(original, mixin)
    undo.callback(delattr, module, "reduction")
    module.reduction = reduction
    # accelerate calls the forward that it saw when it spread the model.
    dispatched = module.__dict__.get("_old_forward")
    if dispatched is not None:
        undo.callback(setattr, module, "_old_forward", dispatched)
        module._old_forward = type(module).forward.__get__(module)


def install_on_shell(model: nn.Module, reduction, modalities: list[Modality]) -> Callable[[], None]:
    """Install a reduction on a stock model with the parts `language_model` and `get_image_features`.

    Args:
        modalities: what the model sees.

    Returns:
        The function that undoes it.
    """
    base = model.base_model

    def describe(kwargs: dict) -> VisualPrompt | None:
        input_ids = kwargs.get("input_ids")
        given = [part for part in modalities if kwargs.get(part.pixels) is not None or part.encoded(kwargs) is not None]
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
        for part in given:
            encoded = part.encoded(kwargs)
            if encoded is not None and part.get_features is not None and not isinstance(encoded, EncodedImages):
                raise ValueError("expected mm_encoder_outputs that were encoded under this reduction, got dense ones")
            visual = input_ids == getattr(base.config, f"{part.name}_token_id")
            prompts.append(VisualPrompt.read(visual, mask, *part.sizes_of(kwargs)))
        return reduce(VisualPrompt.joined, prompts)

    with ExitStack() as undo:
        swap_class(undo, base.language_model, Decoder, reduction)
        hand_over(undo, base, describe)
        for part in modalities:
            if part.get_features is not None:
                replace_method(undo, base, f"get_{part.name}_features", part.get_features)
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
