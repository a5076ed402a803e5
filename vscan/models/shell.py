"""What every multimodal shell of transformers needs to be reduced: its decoder swapped, its visual tokens handed over,
and what cannot work refused. Instances only, and all of it undone by one ExitStack."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, reduce

from torch import Tensor, nn

from ..compat import (
    CACHE_IMPLEMENTATIONS,
    BaseModelOutputWithPooling,
    LibraryChanged,
    encoded,
    is_mrope,
    rebind_forward,
    take_cache,
)
from ..decoder import Decoder, state_of
from ..guards import check_handed_out, generating, generation
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
        return encoded(kwargs, self.name)


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
            images = part.encoded(kwargs)
            if images is not None and part.get_features is not None and not isinstance(images, EncodedImages):
                raise ValueError("expected images that were encoded under this reduction, got dense ones")
            visual = input_ids == getattr(base.config, f"{part.name}_token_id")
            prompts.append(VisualPrompt.read(visual, mask, *part.sizes_of(kwargs)))
        return reduce(VisualPrompt.joined, prompts)

    with ExitStack() as undo:
        swap_class(undo, base.language_model, Decoder, reduction)
        hand_over(undo, base, describe)
        for part in modalities:
            name = f"get_{part.name}_features"
            replace_method(undo, base, name, noted(part.get_features or getattr(base, name)))
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
        if prompt is not None:
            return (), {**kwargs, "visual_prompt": prompt}
        for name, value in kwargs.items():
            if any(
                isinstance(part, EncodedImages) for part in (value.values() if isinstance(value, dict) else (value,))
            ):
                raise LibraryChanged("encoded pictures under a keyword that is known here", name)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = following_positions(base, kwargs)
        return (), kwargs

    def after(module, args, kwargs, output):
        if kwargs.get("visual_prompt") is not None:
            check_handed_out(module, kwargs["visual_prompt"], kwargs, output)

    undo.callback(base.register_forward_pre_hook(before, with_kwargs=True).remove)
    undo.callback(base.register_forward_hook(after, with_kwargs=True).remove)


def noted(get_features: Callable) -> Callable:
    """The same function; the `generate` call under way then knows that the decoder has pictures to come."""

    @functools.wraps(get_features)
    def get_noted_features(*args, **kwargs):
        features = get_features(*args, **kwargs)
        call = generation.get()
        if call is not None:
            call.encoded = True
        return features

    return get_noted_features


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


def refuse_labels(undo: ExitStack, model: nn.Module) -> None:
    """Labels do not line up with a shortened output: say so instead of computing a wrong loss."""

    def before(module, args, kwargs):
        if kwargs.get("labels") is not None:
            raise ValueError(
                "expected no labels while visual tokens are reduced: the output is shorter than the input. Compute the "
                "loss from the logits; `reduction.kept()` says which column of the prompt each of them belongs to"
            )

    undo.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
