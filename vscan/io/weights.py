"""The weights of a checkpoint: their files judged before torch is imported, and the one way in which they are loaded.

Contents:
    weight_files, check_weights                     the files alone
    load_whole                                      a model whose weights are all there, fit, and are numbers
    check_stored, check_finite, check_generation    what a conversion, which loads no model, checks one by one
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import DTYPES, check_pointer, read_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
COMPUTED = ("rotary_emb.inv_freq", "position_ids")  # old checkpoints store them
STORED = {*DTYPES, "F16", "BF16", "F32", "F64"}  # as torch and as safetensors name them


def some(names: Iterable[str]) -> str:
    """The first three of some names, for a message."""
    names = list(names)
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def has_weights(folder: str | Path) -> bool:
    """Whether a folder holds weights, whole or not."""
    return any((Path(folder) / name).is_file() for name in WEIGHTS)


def weight_files(folder: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    Raises:
        FileNotFoundError: if the weights, or some of their shards, are missing.
        ValueError: for an index that is none.
    """
    folder = Path(folder)
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"model path {str(folder)!r}: expected weights (one of {', '.join(WEIGHTS)}), got none")
    if found.suffix != ".json":
        return [found]
    names = read_json(found).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{found}: weight_map: expected an object of weights and their files, got {str(names)[:60]}")
    shards = sorted(set(names.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"model path {str(folder)!r}: expected the {len(shards)} shards that {found.name} names, "
            f"{len(missing)} are missing: {some(missing)}"
        )
    return [folder / shard for shard in shards]


def check_weights(folder: str | Path, quantized: bool = False) -> set[str]:
    """Check the files of a checkpoint's weights by what they say at their beginning.

    Args:
        quantized: weights may be stored as other than floating-point numbers.

    Returns:
        The names of the weights; none for *.bin, which only torch reads.

    Raises:
        FileNotFoundError: if the weights, or some of their shards, are missing.
        ValueError: for a file that is none, is cut short, or holds integers.
    """
    names = set()
    for file in weight_files(folder):
        check_pointer(file)
        if file.suffix == ".safetensors":
            dtypes = _stored_dtypes(file)
            check_stored(file, {} if quantized else dtypes)
            names |= dtypes.keys()
    return names


def check_stored(file: Path, dtypes: dict[str, str]) -> None:
    """Raise ValueError for weights that a file stores as integers, which would be taken for the numbers themselves."""
    wrong = [name for name, dtype in dtypes.items() if dtype not in STORED and not name.endswith(COMPUTED)]
    if wrong:
        named = (f"{name} ({dtypes[name]})" for name in sorted(wrong))
        raise ValueError(f"{file}: expected floating-point weights, {len(wrong)} are not: {some(named)}")


def dtype_name(value: Tensor) -> str:
    """A tensor's dtype, such as "float16"."""
    return str(value.dtype).removeprefix("torch.")


def _stored_dtypes(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as stored:
            return {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: expected plain weights, got {type(error).__name__}: {error}") from error


def load_whole(
    cls: type,
    folder: str | Path | None,
    where: str,
    quantized: bool = False,
    others: tuple[str, ...] = (),
    **options,
):
    """transformers' `from_pretrained`, which fills what is missing at random and drops what is too much; not here.

    Args:
        cls: the model's class.
        folder: with the weights; None where `options` has them as `state_dict`, with their `config`.
        where: whose weights they are, for messages.
        quantized: weights may be stored as other than floating-point numbers.
        others: how names of weights begin that may be there and are not the model's.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError, ValueError: for weights or a generation config that are missing, too many, of other shapes
            than the config's, or no numbers.
    """
    from pickle import UnpicklingError

    try:
        if folder is not None:
            _check_before_loading(Path(folder), quantized)
        with _no_report():
            model, found = cls.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except UnpicklingError as error:
        raise ValueError(f"{where}: expected plain weights, got a pickle that holds other objects") from error
    _check_found(found, where, others)
    check_finite(dict(model.named_parameters()), where)
    return model.eval()


def _check_before_loading(folder: Path, quantized: bool) -> None:
    """Check the files again, for whoever has not, and what takes torch or transformers to know of them."""
    import torch

    check_weights(folder, quantized)
    check_generation(folder)
    for file in weight_files(folder):
        if file.suffix == ".bin" and not quantized:
            stored = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
            check_stored(file, {name: dtype_name(value) for name, value in stored.items() if hasattr(value, "dtype")})


def check_generation(folder: Path) -> None:
    """Raise ValueError for a generation config that transformers would pass over, or stop at."""
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    if not file.is_file():
        return
    read_json(file)
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # of every kind, by the value that is wrong
        raise ValueError(f"{file}: expected settings of generation, got {type(error).__name__}: {error}") from error


@contextmanager
def _no_report():
    """transformers logs a table of what does not fit; one line says it here."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "LOAD REPORT" not in message or "CONVERSION" in message

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _check_found(found: dict, where: str, others: tuple[str, ...]) -> None:
    """Raise ValueError for what `from_pretrained` says about weights that do not fit."""
    missing = sorted(found["missing_keys"])
    unknown = sorted(
        name for name in found["unexpected_keys"] if not name.endswith(COMPUTED) and not name.startswith(others)
    )
    shapes = sorted((name, list(got), list(expected)) for name, got, expected in found["mismatched_keys"])
    wrong = []
    if missing:
        wrong.append(f"expected all weights of the model, {len(missing)} are missing: {some(missing)}")
    if unknown:
        wrong.append(f"expected only weights of the model, {len(unknown)} are too many: {some(unknown)}")
    if shapes:
        named = (f"{name} (expected {expected}, got {got})" for name, got, expected in shapes)
        wrong.append(f"expected weights of the shapes in its config, {len(shapes)} have others: {some(named)}")
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise ValueError for weights that hold NaN or infinity.

    One pass over each, on its device, that makes no tensor of its size; the device is read once. Weights that
    accelerate keeps elsewhere are left out, and so are those that are quantized.
    """
    import torch

    checked = {name: value for name, value in weights.items() if _can_be_checked(value)}
    if not checked:
        return
    # NaN goes through a minimum and a maximum, and so infinity does; many times as fast as isfinite of every number.
    finite = [torch.stack(torch.aminmax(value.detach())).isfinite().all() for value in checked.values()]
    home = finite[0].device
    finite = torch.stack([each.to(home) for each in finite]).tolist()
    wrong = [name for name, holds in zip(checked, finite, strict=True) if not holds]
    if wrong:
        dtype = dtype_name(checked[wrong[0]])
        raise ValueError(
            f"{where}: expected finite weights in {dtype}, {len(wrong)} hold NaN or infinity: {some(sorted(wrong))}"
        )


def _can_be_checked(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize > 1 and not value.is_meta and value.numel() > 0
