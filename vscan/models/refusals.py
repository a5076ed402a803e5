"""What cannot work while visual tokens are reduced, refused in a sentence. Instances only, undone by an ExitStack."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn

from ..checks.guards import generating
from ..compat import CACHE_IMPLEMENTATIONS, STATIC_IMPLEMENTATIONS, take_cache
from .encoded import Modality


def replace_method(undo: ExitStack, instance: nn.Module, name: str, method: Callable) -> None:
    """Replace a method of one instance; its signature stays readable, because generate filters keywords by it."""
    functools.update_wrapper(method, getattr(instance, name))
    if name in instance.__dict__:  # somebody else's
        undo.callback(instance.__dict__.__setitem__, name, instance.__dict__[name])
    else:
        undo.callback(instance.__dict__.pop, name)
    instance.__dict__[name] = method


def check_no_pictures(base: nn.Module, input_ids: Tensor | None, modalities: list[Modality]) -> None:
    """Raise ValueError where a prompt names pictures and none came; one token is no prompt, and is not read."""
    if input_ids is None or input_ids.shape[1] == 1 or input_ids.is_meta:
        return
    for part in modalities:
        number = int((input_ids == getattr(base.config, f"{part.name}_token_id")).sum())
        if number:
            raise ValueError(f"expected {part.pixels} for the {number} {part.name} tokens of the prompt, got none")


def check_generation(model, kwargs: dict) -> bool:
    """Refuse what cannot work with a prompt that gets shorter.

    Args:
        kwargs: the keywords of `generate`.

    Returns:
        Whether it will make a static cache of its own.

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
    return cache is None and kind in STATIC_IMPLEMENTATIONS


def guard_generate(undo: ExitStack, model: nn.Module) -> None:
    """Check every call of `generate`, and let the decoder know how long its prompt is."""
    original = model.generate
    names = list(inspect.signature(original).parameters)

    def generate(*args, **kwargs):
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        makes_cache = check_generation(model, kwargs)
        ids = kwargs.get("input_ids") if kwargs.get("inputs") is None else kwargs["inputs"]
        with generating(ids, model if makes_cache else None, kwargs):
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
