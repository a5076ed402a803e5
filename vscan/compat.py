"""What the code takes from inside transformers, accelerate and torch: every name that they do not promise to keep.

Nothing else in the repository imports or spells these names, so that what a new release changes is mended here. Which
of two names holds is decided by a signature or a field, never by a version number. `check` looks at a model before a
reduction is installed on it.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.cache_utils import Cache, StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from .errors import LibraryChanged

_PLACES = {
    "BaseModelOutputWithPooling": "transformers.modeling_outputs",
    "CLIPEncoderLayer": "transformers.models.clip.modeling_clip",
    "CLIPImageProcessorPil": "transformers",
    "LlamaPreTrainedModel": "transformers.models.llama.modeling_llama",
    "Qwen2VLImageProcessorPil": "transformers",
    "Qwen2_5_VLTextModel": "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "Qwen2_5_VisionTransformerPretrainedModel": "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "SPIECE_UNDERLINE": "transformers.tokenization_utils_sentencepiece",
    "SentencePieceBackend": "transformers.tokenization_utils_sentencepiece",
    "apply_rotary_pos_emb": "transformers.models.llama.modeling_llama",
    "capture_outputs": "transformers.utils.output_capturing",
    "get_anyres_image_grid_shape": "transformers.models.llava_next.modeling_llava_next",
    "image_size_to_num_patches": "transformers.models.llava_next.modeling_llava_next",
    "init_empty_weights": "accelerate",
    "merge_with_config_defaults": "transformers.utils.generic",
    "unpad_image": "transformers.models.llava_next.modeling_llava_next",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_PLACES[name]), name)
    except (ImportError, AttributeError) as error:
        raise LibraryChanged(f"{name} in {_PLACES[name]}", f"none ({error})") from error


# ------------------------------------------------------------------------------------------------------- the KV cache

# 5.24 renamed `past_key_values`; a function that is called by keyword must be called by the one that it knows.
CACHE_NAMES = ("cache", "past_key_values")
CACHE = next((field.name for field in fields(BaseModelOutputWithPast) if field.name in CACHE_NAMES), "cache")
ARGUMENTS = ("input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", "use_cache")  # of a text model
STATIC_IMPLEMENTATIONS = ("static", "offloaded_static")
LONGEST = "_previous_max_cache_length"
CACHE_IMPLEMENTATIONS = (None, "dynamic", "offloaded", "quantized", *STATIC_IMPLEMENTATIONS)


def take_cache(keywords: dict) -> Cache | None:
    """Take the cache out of a call's keywords, under whichever name it came. An empty one is false: never use `or`."""
    found = [keywords.pop(name, None) for name in CACHE_NAMES]
    return next((cache for cache in found if cache is not None), None)


def cache_of(output) -> Cache | None:
    """The cache in what a model returned, an output object or a tuple."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    return getattr(output, CACHE, None)


def held(cache: Cache, layer_idx: int) -> tuple[int, bool]:
    """The columns that a cache holds for one layer, and whether that number is exact: a static cache counts on the
    device, which is not read, and gives what it has allocated."""
    length = cache.get_seq_length(layer_idx)
    if isinstance(length, int):
        return length, True
    keys = getattr(cache.layers[layer_idx], "keys", None)
    return (0, True) if keys is None else (keys.shape[-2], False)


def is_static(layer) -> bool:
    """Whether a layer of a cache is as long from the start as it will ever be. It is laid out when it is first used,
    at `max_cache_len`; `is_initialized` says whether it was."""
    return isinstance(layer, StaticLayer) and not layer.is_sliding


@contextmanager
def forgotten_length(model: nn.Module) -> Iterator[None]:
    """While `generate` makes a static cache: not as long as the longest that it ever made for this model, which it
    remembers so as to compile less; a reduced prompt's own length it could not be told from."""
    remembered = vars(model).pop(LONGEST, None)
    try:
        yield
    finally:
        vars(model).pop(LONGEST, None)
        if remembered is not None:
            setattr(model, LONGEST, remembered)


def cache_size(cache: Cache) -> tuple[int | None, torch.dtype | None]:
    """Bytes of a cache's keys and values, of a static cache those allocated, and their dtype; None where a layer keeps
    some of its columns in another form, such as quantized."""
    parts = []
    for index, layer in enumerate(cache.layers):
        states = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if not all(isinstance(part, Tensor) and part.shape[-2] >= held(cache, index)[0] for part in states):
            return None, None
        parts += states
    return sum(part.nbytes for part in parts), parts[0].dtype if parts else None


# ------------------------------------------------------------------------------------------------------- the decoder


def causal_mask(
    config, hidden: Tensor, attention_mask: Tensor | None, cache: Cache | None, layer_idx: int, may_skip: bool
):
    """The mask of one layer, sized on what the cache holds for that layer; no positions are given: those with gaps
    would be read as packed sequences.

    Args:
        hidden: [B, S, D], the layer's input.
        attention_mask: bool [B, cached + S], or None where every column holds a token.
        may_skip: whether a plain causal mask may be left out.
    """
    return mask_builder()(
        config=config,
        inputs_embeds=hidden,
        attention_mask=attention_mask,
        position_ids=None,
        layer_idx=layer_idx,
        allow_is_causal_skip=may_skip,
        **{CACHE: cache},
    )


def mask_builder() -> Callable:
    """The function that makes masks, as it is now."""
    return masking_utils.create_causal_mask


def is_mrope(model: nn.Module) -> bool:
    """Whether a text model's positions have three axes: time, height and width."""
    return "mrope_section" in (model.config.rope_parameters or {})


def rotary_of(model: nn.Module, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The rotary embeddings (cos, sin) of positions [B or 1, S], or [3, B or 1, S] for M-RoPE."""
    if positions.ndim == 2 and is_mrope(model):
        positions = positions.expand(3, -1, -1)  # text counts alike on all three axes
    return model.rotary_emb(hidden, position_ids=positions)


class Projections(NamedTuple):
    """What makes the queries and keys of a layer: modules, called as they are. `scale` multiplies their products."""

    norm: nn.Module
    query: nn.Module
    key: nn.Module
    head_dim: int
    scale: float


def projections(layer: nn.Module) -> Projections:
    """Those of a decoder layer of Llama's or Qwen2's kind, or of a CLIP encoder layer."""
    attention = layer.self_attn
    if hasattr(layer, "input_layernorm"):
        return Projections(
            layer.input_layernorm, attention.q_proj, attention.k_proj, attention.head_dim, attention.scaling
        )
    return Projections(layer.layer_norm1, attention.q_proj, attention.k_proj, attention.head_dim, attention.scale)


def attention_weights(layer: nn.Module, hidden: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The weights of a decoder layer's own attention, computed eagerly: slow, for checks.

    Args:
        hidden: [B, S, D], the layer's input.
        mask: [B, 1, S, S], added to the logits.
        rotary: (cos, sin).

    Returns:
        [B, H, S, S].
    """
    attention = layer.self_attn
    implementation = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        normed = layer.input_layernorm(hidden)
        return attention(hidden_states=normed, attention_mask=mask, position_embeddings=rotary)[1]
    finally:
        attention.config._attn_implementation = implementation


def attention_implementation(model: nn.Module) -> str:
    """How a model computes attention, such as "sdpa"."""
    return model.config._attn_implementation


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate, if it has spread the model, lets a module compute."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def rebind_forward(module: nn.Module) -> Callable[[], None] | None:
    """After a change of its class: accelerate calls the forward that it saw when it spread the model.

    Returns:
        The function that undoes it; None for a module that accelerate does not call.
    """
    dispatched = module.__dict__.get("_old_forward")
    if dispatched is None:
        return None
    module._old_forward = type(module).forward.__get__(module)
    return lambda: setattr(module, "_old_forward", dispatched)


# -------------------------------------------------------------------------------------------------- towers and shells

ENCODED = "mm_encoder_outputs"  # keyword of shells: pictures that `generate` encoded before, since 5.18


def encoded(keywords: dict, modality: str):
    """Pictures or videos that were encoded before the shell was called, or None."""
    return (keywords.get(ENCODED) or {}).get(modality)


def takes_encoded(model: nn.Module) -> bool:
    """Whether a model's `forward` takes encoded pictures."""
    return ENCODED in inspect.signature(model.forward).parameters


def pixels_of_images(shell: nn.Module) -> str:
    """The keyword by which a Video-LLaVA takes images: it was `pixel_values_images` before 5.23."""
    taken = inspect.signature(type(shell).forward).parameters
    return "pixel_values" if "pixel_values" in taken else "pixel_values_images"


def pooled(output) -> list[Tensor]:
    """The features in what a shell's `get_image_features` returned, one tensor a picture; else LibraryChanged."""
    features = getattr(output, "pooler_output", None)
    if features is None:
        raise LibraryChanged("encoded pictures with a pooler_output", type(output).__name__)
    return list(features)


def pack_crops(shell: nn.Module, crops: list[Tensor], image_sizes: Tensor, newline: Tensor) -> list[Tensor]:
    """LLaVA-NeXT's own packing: the crops [n, N, D] of every picture become its tokens [M, D]."""
    packed, _ = shell.pack_image_features(
        image_features=crops,
        image_sizes=image_sizes,
        vision_feature_select_strategy="default",
        image_newline=newline,
    )
    return list(packed)


def clip_blocks(tower: nn.Module) -> nn.ModuleList:
    """The blocks of a CLIP tower."""
    return tower.encoder.layers


def clip_entry(tower: nn.Module, embedded: Tensor) -> Tensor:
    """What the first block of a CLIP tower gets, from embeddings [V, 1 + N, C]."""
    return tower.pre_layrnorm(embedded)


def run_clip_block(block: nn.Module, hidden: Tensor, **options) -> Tensor:
    """One block, without a mask."""
    return block(hidden, None, **options)


def clip_parts(block: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """What makes values and the output in a block's attention, the norm behind it, the MLP; `projections` the rest."""
    return block.self_attn.v_proj, block.self_attn.out_proj, block.layer_norm2, block.mlp


def clip_last_norm(tower: nn.Module) -> nn.Module:
    """The norm that a CLIP tower applies to [CLS] behind its last block."""
    return tower.post_layernorm


def clip_words(clip: nn.Module, ids: Tensor) -> Tensor:
    """A whole CLIP's embeddings of the tokens of a text, long [L], in the space shared with pictures: [L, C]."""
    return clip.text_projection(clip.text_model(input_ids=ids.unsqueeze(0)).last_hidden_state[0])


def vision_windows(tower: nn.Module, grid_thw: Tensor, keywords: dict) -> Tensor | None:
    """The order in which a Qwen2.5-VL tower's blocks see merged patches; it is told what was worked out for it.

    Args:
        keywords: of the tower's forward; gets the windows.

    Returns:
        Long [tokens]; None for a tower without windows.
    """
    if not hasattr(tower, "window_size"):
        return None
    order, windows = import_module("transformers.vision_utils").get_vision_window_index(
        grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size, kwargs=keywords
    )
    keywords |= {"window_index": order, "cu_window_seqlens": windows}
    return order


def vision_places(tower: nn.Module, grid_thw: Tensor, device: torch.device) -> dict[str, Tensor]:
    """What such a tower works out from the sizes of pictures alone, as keywords of its forward: where patches and
    windows lie on its device, and on the host the lengths that it reads.

    Args:
        grid_thw: long [num_images, 3], on the host.
    """
    vision = import_module("transformers.vision_utils")
    places = {
        "position_ids": vision.get_vision_position_ids(grid_thw, tower.spatial_merge_size).to(device),
        "cu_seqlens": vision.get_vision_cu_seqlens(grid_thw),
    }
    if vision_windows(tower, grid_thw, places) is not None:
        places["window_index"] = places["window_index"].to(device)
    return places


def build(cls: type, config, **options) -> nn.Module:
    """A model of a class with random weights, in the dtype and with the attention that `options` name."""
    return cls._from_config(config, **options)


def memory_events(profile) -> list[tuple[int, int]]:
    """(time in nanoseconds, bytes) of every allocation, negative where memory was freed, that torch's profiler saw."""
    events = profile.profiler.kineto_results.events()
    return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]


# ----------------------------------------------------------------------------------------------------------- checks


def text_model_of(model: nn.Module) -> nn.Module:
    """The decoder inside a model that generates: a shell's language model, or the one below the head."""
    return getattr(model.base_model, "language_model", model.base_model)


def check(model: nn.Module) -> None:
    """Check that transformers does what a model needs here: signatures, then small copies of its parts.

    Args:
        model: the model that generates.

    Raises:
        LibraryChanged: naming what does not fit.
    """
    # These run the decoder loop and the tower, which take their names from here.
    from .checks.selftest import check_text_model
    from .checks.selftest_tower import check_clip_tower, clip_towers_of
    from .checks.signatures import check_signatures
    from .classes import original_of
    from .decoder import Decoder

    text_model = text_model_of(model)
    stock = original_of(type(text_model), Decoder)
    check_signatures(model.base_model, text_model, stock)
    check_text_model(text_model, stock)
    for tower in clip_towers_of(model):
        check_clip_tower(tower)
