"""What a `generate` call asks for: how long its answer may get, and whether recorded graphs can give it."""

from typing import Any

from ..compat import CACHE_NAMES
from .buckets import Uncaptured

DEFAULT_LENGTH = 20  # of an answer, in transformers, where nothing is said


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
