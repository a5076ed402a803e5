"""What a `generate` call asks for: how long its answer may get, and whether recorded graphs can give it."""

from typing import Any

from torch import Tensor, nn

from ..checks.guards import Generation
from ..compat import CACHE, CACHE_NAMES, attention_implementation
from .buckets import Uncaptured

DEFAULT_LENGTH = 20  # of an answer, in transformers, where nothing is said
KNOWN = {"attention_mask", "position_ids", "inputs_embeds", "input_ids", "use_cache", "return_dict", CACHE}
IMPLEMENTATIONS = ("sdpa", "eager")  # of attention: others read masks on the host


def check_asked(model, keywords: dict[str, Any], prompt_length: int | None) -> int:
    """The most tokens that the answer may have.

    Args:
        model: what generates.
        keywords: of `generate`.
        prompt_length: columns of the prompts, where they came as token ids.

    Raises:
        Uncaptured: for what only the eager way gives.
    """
    config = keywords.get("generation_config") or model.generation_config

    def value(name: str):
        given = keywords.get(name)
        return getattr(config, name, None) if given is None else given

    if (value("num_beams") or 1) > 1:
        raise Uncaptured("beams reorder the cache")
    if value("use_cache") is False:
        raise Uncaptured("use_cache=False")
    for name in ("output_attentions", "output_hidden_states"):
        if value(name) or getattr(model.config.get_text_config(decoder=True), name, None):
            raise Uncaptured(f"{name}=True")
    if any(keywords.get(name) is not None for name in CACHE_NAMES):
        raise Uncaptured("the cache is the caller's own")
    if value("cache_implementation") not in (None, "dynamic"):
        raise Uncaptured(f"cache_implementation={value('cache_implementation')!r}")
    for name in ("custom_generate", "penalty_alpha", "dola_layers"):
        if value(name):
            raise Uncaptured(f"{name}={value(name)!r}")
    if value("max_new_tokens"):
        return value("max_new_tokens")
    longest = value("max_length")
    return DEFAULT_LENGTH if longest is None else max(1, longest - (prompt_length or 0))


def check_call(model: nn.Module, decoder: nn.Module, call: Generation | None, kwargs: dict[str, Any]) -> int:
    """The most tokens that the answer may have, from a prompt's call of the decoder.

    Args:
        model, decoder: what generates, and its text model.
        call: the `generate` call under way.
        kwargs: of the decoder's.

    Raises:
        Uncaptured: for a call that no recording serves.
    """
    if call is None or call.keywords is None:
        raise Uncaptured("it ran outside generate")
    ids, mask, hidden = call.input_ids, kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    room = check_asked(model, call.keywords, None if ids is None else ids.shape[1])
    if hidden is None or kwargs.get(CACHE) is None or kwargs.get("use_cache") is False:
        raise Uncaptured("it ran without embeddings, or without a cache")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise Uncaptured("its attention mask is not [items, columns]")
    if ids is not None and ids.shape[1] != hidden.shape[1]:
        raise Uncaptured("another prompt than that of the generate call ran")
    others = sorted(name for name in kwargs.keys() - KNOWN if kwargs[name] not in (None, False))
    if others or kwargs.get("return_dict") is False:
        raise Uncaptured(f"the decoder is told {', '.join(others) or 'return_dict=False'}")
    if hidden.shape[1] + room > decoder.config.max_position_embeddings:
        raise Uncaptured("prompt and answer are longer than the model's context")
    if attention_implementation(decoder) not in IMPLEMENTATIONS:
        raise Uncaptured(f"{attention_implementation(decoder)} attention")
    return room
