"""Checkpoint folders, judged by their files alone: before torch is imported and any weight is read."""

from pathlib import Path

from vscan.io.checkpoint import check_config, check_pointer, check_settings
from vscan.io.weights import check_weights

MODEL_TYPES = ("qwen2_5_vl",)
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # one of these sets of files


def check_checkpoint(folder: str | Path) -> dict:
    """Check that a folder holds a whole checkpoint of a kind that can be loaded.

    Returns:
        Its config.

    Raises:
        FileNotFoundError: if the config, the tokenizer, the image processor's config, the weights or some of their
            shards are missing.
        ValueError: for a file that is no JSON, a value of a wrong kind, weights that are none, an adapter, or another
            architecture.
    """
    folder = Path(folder)
    config = check_config(folder)
    if config.get("model_type") not in MODEL_TYPES or not isinstance(config.get("vision_config"), dict):
        raise ValueError(
            f"model path {str(folder)!r}: expected a config with vision_config and one of the model types "
            f"{', '.join(MODEL_TYPES)}, got model_type {config.get('model_type')!r}"
        )
    tokenizer = next((names for names in TOKENIZERS if all((folder / name).is_file() for name in names)), None)
    if tokenizer is None:
        sets = " or ".join(" with ".join(names) for names in TOKENIZERS)
        raise FileNotFoundError(f"model path {str(folder)!r}: expected a tokenizer ({sets}), got none")
    if not (folder / "preprocessor_config.json").is_file():
        raise FileNotFoundError(f"model path {str(folder)!r}: expected preprocessor_config.json, found none")
    for name in tokenizer:
        check_pointer(folder / name)
    check_settings(folder)
    width = (config.get("text_config") or config).get("hidden_size")
    given = config["vision_config"].get("out_hidden_size")
    if None not in (width, given) and given != width:
        raise ValueError(
            f"{folder / 'config.json'}: vision_config.out_hidden_size: expected {width}, the hidden_size, got {given}"
        )
    check_weights(folder, "quantization_config" in config)
    return config
