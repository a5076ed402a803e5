"""How `llava.model.convert` turns a checkpoint in the original format into one of stock transformers."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, PreTrainedConfig

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_PAD_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.tokenizer import LlamaSentencePieceTokenizer, load_tokenizer
from vscan.io.weights import (
    COMPUTED,
    check_finite,
    check_generation,
    check_stored,
    dtype_name,
    has_weights,
    weight_files,
)

from .builder import HUGGING_FACE
from .check import check_checkpoint
from .check_video import IMAGE, VIDEO, find_languagebind, is_video, tower_settings
from .convert_settings import build_config, build_video_config, write_json, write_settings
from .convert_tokenizer import build_tokenizer
from .multimodal_encoder.builder import PREFIX, TEXT, find_vision_tower

SHARD_BYTES = 5_000_000_000
# Old name -> new name, by prefix; the first that fits. These are the names on the hub, which every version reads.
NAMES = {
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.image_newline": "image_newline",
    f"{PREFIX}vision_model.": "vision_tower.vision_model.",
    PREFIX: "vision_tower.vision_model.",
    IMAGE.prefix: "image_tower.vision_model.",
    VIDEO.prefix: "video_tower.vision_model.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
# The same names as the stock model's modules have them; only some versions nest `vision_model`.
MODULES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.image_tower.vision_model.": "image_tower.vision_model.",
    "model.image_tower.": "image_tower.vision_model.",
    "model.video_tower.vision_model.": "video_tower.vision_model.",
    "model.video_tower.": "video_tower.vision_model.",
    "model.image_newline": "image_newline",
}
OVER_TIME = ".temporal_"  # in the names of what stock models have no place for


def convert(src: str | Path, dst: str | Path, shard_bytes: int = SHARD_BYTES, drop_temporal: bool = False) -> None:
    """Convert the checkpoint folder `src` into the new folder `dst`.

    Args:
        src: LLaVA-1.5, or LLaVA-NeXT on Llama, its vision tower inside, or where `mm_vision_tower` is found; or
            Video-LLaVA.
        dst: a folder that is empty or does not exist. It appears when everything is written.
        shard_bytes: the size of a shard at most, but for a tensor that is larger.
        drop_temporal: leave out the attention over time of a Video-LLaVA, for which stock models have no place.

    Raises:
        FileExistsError: if there is something at `dst`.
        FileNotFoundError, ValueError: if `src` is not a whole checkpoint of these kinds, or `drop_temporal` does
            not fit it.
    """
    src, dst = Path(src), Path(dst).resolve()
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise FileExistsError(f"DST {str(dst)!r}: expected an empty folder or none, something is there")
    stored = check_original(src)
    has_time = is_video(stored) and tower_settings(VIDEO, stored, src)["add_time_attn"]
    check_time(src, has_time, drop_temporal)
    original = load_tokenizer(src)
    if not isinstance(original, LlamaSentencePieceTokenizer):
        raise ValueError(f"SRC {str(src)!r}: expected tokenizer.model alone, got a tokenizer.json beside it")
    added = (DEFAULT_IMAGE_TOKEN, *((DEFAULT_VIDEO_TOKEN, DEFAULT_PAD_TOKEN) if is_video(stored) else ()))
    tokenizer = build_tokenizer(original, added)
    ids = [tokenizer.token_to_id(token) for token in added]
    if is_video(stored):
        towers = {part.prefix: find_languagebind(part, stored, src) for part in (IMAGE, VIDEO)}
        config = build_video_config(stored, tower_settings(IMAGE, stored, src), ids)
    else:
        towers = {PREFIX: find_vision_tower(stored["mm_vision_tower"], src)}
        config = build_config(stored, CLIPVisionConfig.from_pretrained(towers[PREFIX]), *ids)

    partial = dst.with_name(f".{dst.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        weights = stock_weights(src, towers, stored["vocab_size"], config.text_config.vocab_size)
        write_weights(src, weights, config, partial, shard_bytes)
        config.save_pretrained(partial)
        tokenizer.save(str(partial / "tokenizer.json"))
        write_settings(src, stored, original, towers.get(PREFIX), config, partial)
        partial.replace(dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if has_time:
        print("dropped the video tower's attention over time, as the published conversion does", flush=True)


def check_time(src: Path, has_time: bool, drop_temporal: bool) -> None:
    """Raise ValueError for attention over time that would be lost in silence, or where there is none to drop."""
    if has_time and not drop_temporal:
        raise ValueError(
            f"SRC {str(src)!r}: expected --drop-temporal, for stock models have no place for the video tower's "
            "attention over time; without it videos are answered differently, as by the published conversion"
        )
    if drop_temporal and not has_time:
        raise ValueError(f"SRC {str(src)!r}: expected a Video-LLaVA with attention over time to drop, got none")


def check_original(src: Path) -> dict:
    """The config of a checkpoint that can be converted.

    Raises:
        FileNotFoundError, ValueError: if it is incomplete, of another kind, or has parts that stock models lack.
    """
    stored = check_checkpoint(src)
    check_generation(src)
    any_resolution = stored.get("image_aspect_ratio") == "anyres"
    expected = {
        "mm_vision_tower": (
            stored.get("mm_vision_tower") or (None if is_video(stored) else "a vision tower (the original format)"),
        ),
        "model_type": ("llava", "llava_llama"),
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", None),
        "mm_use_im_start_end": (False, None),
        "image_aspect_ratio": ("pad", "square", "anyres", None),
        "mm_patch_merge_type": ("spatial_unpad",) if any_resolution else ("flat", "spatial", None),
    }
    for name, allowed in expected.items():
        if stored.get(name) not in allowed:
            raise ValueError(f"SRC {str(src)!r}: {name}: expected {_either(allowed)}, got {stored.get(name)!r}")
    for name in ("vocab_size", "mm_vision_select_layer", *["image_grid_pinpoints"] * any_resolution):
        if not isinstance(stored.get(name), int | list):
            raise ValueError(f"SRC {str(src)!r}: {name}: expected one in config.json, got {stored.get(name)!r}")
    return stored


def _either(values: tuple) -> str:
    return " or ".join("none" if value is None else repr(value) for value in values)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint folder under their stored names, one at a time.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: for a file that is broken, or that holds more than tensors.
    """
    for file in weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as weights:
                    yield from ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118
            else:
                weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
                # A clone is read from the disk at once and shares its memory with no other tensor.
                yield from ((name, value.clone()) for name, value in weights.items())
        except (UnpicklingError, SafetensorError, RuntimeError, EOFError, AttributeError) as error:
            raise ValueError(f"{file}: expected plain weights, got {type(error).__name__}: {error}") from error


def renamed(names: dict[str, str], name: str) -> str | None:
    """`name` with its prefix replaced, or None where none of `names` fits."""
    return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), None)


def stock_weights(
    src: Path, towers: dict[str, Path | None], vocab_size: int, num_rows: int
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the stock model: those of the checkpoint, and of the towers' own folders where it holds none.

    Args:
        towers: {how the checkpoint names a tower's weights: the tower's folder}; what LanguageBind's folders hold comes
            before what is inside, as in loading.
        vocab_size, num_rows: rows of the vocabulary before and after.
    """
    inside = set()
    outside = tuple(prefix for prefix, folder in towers.items() if prefix != PREFIX and folder and has_weights(folder))
    for name, value in read_weights(src):
        if name.endswith(COMPUTED) or OVER_TIME in name or name.startswith(outside):
            continue
        inside |= {prefix for prefix in towers if name.startswith(prefix)}
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            if len(value) != vocab_size:
                raise ValueError(
                    f"SRC {str(src)!r}: {name}: expected {vocab_size} rows, the vocab_size, got {len(value)}"
                )
            mean = value.mean(0, keepdim=True, dtype=torch.float32).to(value.dtype)
            value = torch.cat((value, mean.expand(num_rows - len(value), -1)))
        yield renamed(NAMES, name) or name, value
    for prefix, folder in towers.items():
        for name, value in read_weights(folder) if folder and prefix not in inside else ():
            if not name.startswith(TEXT) and not name.endswith(COMPUTED) and OVER_TIME not in name:
                yield NAMES[prefix] + name.removeprefix("vision_model."), value


def write_weights(
    src: Path, weights: Iterator[tuple[str, Tensor]], config: PreTrainedConfig, folder: Path, shard_bytes: int
) -> None:
    """Write the stock model's weights, in shards, and say so for each.

    Raises:
        ValueError: if tensors are missing, too many, or of another shape than the config's.
    """
    with torch.device("meta"):
        model = HUGGING_FACE[config.model_type](config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = {renamed(MODULES, name): value.shape for name, value in model.state_dict().items() if name not in tied}
    shards, shard, size = [], {}, 0
    total = sum(shape.numel() for shape in missing.values())
    done = 0

    def flush() -> None:
        file = folder / f"shard-{len(shards)}.safetensors"
        try:
            save_file(shard, file, metadata={"format": "pt"})
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(f"{folder}: expected room for {size / 1e9:.2f} GB, got {error}") from error
        shards.append((file, list(shard), size))
        print(f"shard {len(shards)}: {len(shard)} tensors, {size / 1e9:.2f} GB, {done / total:.0%} done", flush=True)

    for name, value in weights:
        shape = missing.pop(name, None)
        if shape != value.shape:
            expected = f"no weight {name}" if shape is None else f"{name} of shape {list(shape)}"
            raise ValueError(f"SRC {str(src)!r}: expected {expected} by its config, got shape {list(value.shape)}")
        check_stored(src, {name: dtype_name(value)})
        check_finite({name: value}, f"SRC {str(src)!r}")
        num_bytes = value.numel() * value.element_size()
        if shard and size + num_bytes > shard_bytes:
            flush()
            shard, size = {}, 0
        shard[name] = value.contiguous()
        size, done = size + num_bytes, done + value.numel()
    if missing:
        raise ValueError(f"SRC {str(src)!r}: expected {len(missing)} more weights, such as {sorted(missing)[:3]}")
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for index, (file, names, _) in enumerate(shards, 1):
        final = f"model-{index:05}-of-{len(shards):05}.safetensors"
        file.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": sum(size for _, _, size in shards)}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
