"""Checkpoint folders, judged by their files alone: before torch is imported and any weight is read."""

from pathlib import Path

from vscan.eval.checkpoint import check_config, check_weights, read_json

MODEL_TYPES = ("qwen2_5_vl",)
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # one of these sets of files
# Where they are there, they must be whole: transformers passes over a generation config that is not, for example.
SETTINGS = ("preprocessor_config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def check_checkpoint(folder: str | Path) -> dict:
    """Check that a folder holds a whole checkpoint of a kind that can be loaded.

    Returns:
        Its config.

    Raises:
        FileNotFoundError: if the config, the tokenizer, the image processor's config, the weights or some of their
            shards are missing.
        ValueError: for a file that is no JSON, or another architecture.
    """
    folder = Path(folder)
    config = check_config(folder)
    if config.get("model_type") not in MODEL_TYPES or "vision_config" not in config:
        raise ValueError(
            f"model path {str(folder)!r}: expected a config with vision_config and one of the model types "
            f"{', '.join(MODEL_TYPES)}, got model_type {config.get('model_type')!r}"
        )
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        sets = " or ".join(" with ".join(names) for names in TOKENIZERS)
        raise FileNotFoundError(f"model path {str(folder)!r}: expected a tokenizer ({sets}), got none")
    if not (folder / "preprocessor_config.json").is_file():
        raise FileNotFoundError(f"model path {str(folder)!r}: expected preprocessor_config.json, found none")
    for name in SETTINGS:
        if (folder / name).is_file():
            read_json(folder / name)
    check_weights(folder)
    return config
