"""Whether a model, its text model and the mask builder take the keywords that are used here."""

import inspect
from collections.abc import Callable

from torch import nn

from ..compat import ARGUMENTS, CACHE, ENCODED, LibraryChanged, mask_builder

# What shells took before that: one that takes other keywords, and not this one, hands pictures over in a way unknown.
_SHELL_KEYWORDS = {
    *(
        "input_ids",
        "pixel_values",
        "pixel_values_images",
        "pixel_values_videos",
        "attention_mask",
        "position_ids",
        CACHE,
        "inputs_embeds",
    ),
    *("vision_feature_layer", "vision_feature_select_strategy", "image_sizes", "use_cache", "image_grid_thw"),
    *("video_grid_thw", "rope_deltas", "mm_token_type_ids", "second_per_grid_ts", "output_attentions"),
    *("output_hidden_states", "return_dict", "cache_position", "logits_to_keep", "labels"),
}


def check_signatures(base: nn.Module, text_model: nn.Module, stock: type) -> None:
    """Check that a model, its text model and the mask builder take the keywords that are used here.

    Args:
        base: the model without its head.
        text_model: its decoder, `base` itself where it has no other parts.
        stock: the class whose forward the decoder loop stands in for.

    Raises:
        LibraryChanged: naming what is missing.
    """
    _check_takes("a text model", stock.forward, ARGUMENTS)
    first = list(inspect.signature(stock.forward).parameters)[1 : 1 + len(ARGUMENTS)]
    if tuple(first) != ARGUMENTS:
        raise LibraryChanged(f"a text model whose arguments begin with {', '.join(ARGUMENTS)}", ", ".join(first))
    layer = type(text_model.layers[0])
    of_layer = ("hidden_states", "attention_mask", "position_ids", CACHE, "use_cache", "position_embeddings")
    _check_takes(f"a decoder layer ({layer.__name__})", layer.forward, of_layer)
    of_mask = ("config", "inputs_embeds", "attention_mask", CACHE, "position_ids", "layer_idx", "allow_is_causal_skip")
    _check_takes("a mask builder", mask_builder(), of_mask)
    if base is not text_model:
        taken = {
            name
            for name, parameter in inspect.signature(type(base).forward).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "self"
        }
        if CACHE not in taken:
            raise LibraryChanged(f"a {type(base).__name__} that takes {CACHE}", f"one of ({', '.join(sorted(taken))})")
        if ENCODED not in taken and taken - _SHELL_KEYWORDS:
            unknown = ", ".join(sorted(taken - _SHELL_KEYWORDS))
            raise LibraryChanged(f"a {type(base).__name__} that takes encoded pictures as {ENCODED}", unknown)


def _check_takes(what: str, function: Callable, names: tuple[str, ...]) -> None:
    taken = inspect.signature(function).parameters
    missing = [name for name in names if name not in taken]
    if missing:
        raise LibraryChanged(f"{what} that takes {', '.join(missing)}", f"one of ({', '.join(taken)})")
