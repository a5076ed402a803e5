"""What a run was begun with, for `run.json` beside its answers, and what differs in another run. Imports no torch.

run_record, reduction_record    flags, versions, and what lies in the files that the flags name; the reduction
difference                      what differs between the record of a run and another one
versions, file_digest, checkpoint_files
"""

import argparse
import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ..config import ReductionConfig
from ..methods import method_fields

# Flags that change no answer, and those that the record has in other words.
FREE = {"answers_file", "output_dir", "output_name", "datasets", "num_workers", "on_error", "capture"}
FREE |= {"cache_dir", "model_max_length"}  # which do nothing
REDUCTION = {"method", "positions", "layer_list", "average", "preset", "given", "frame_cls", "group"}
REDUCTION |= {"visual_token_num", "image_token_list", "image_token_ratio", "image_token_ratio_list"}
PATHS = ("model_path", "question_file", "image_folder", "data_root", "image_root", "truth_file", "video_folder")
LIBRARIES = ("vscan", "torch", "transformers")
LATER = {"versions", "questions_sha256", "checkpoint"}  # keys that older records do not have
# What decides the answers in a checkpoint's folder, which may hold answers, logs and pictures too.
WEIGHTS = (".safetensors", ".bin", ".index.json")
SETTINGS = {"config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"}
SETTINGS |= {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
SETTINGS |= {"added_tokens.json", "vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja"}


def run_record(args: argparse.Namespace, question_file: str | Path, folders: Iterable[str | Path]) -> dict:
    """What decides the answers: the flags, without the reduction and where answers go, and what the files hold.

    However a path or a default is spelled, the record is the same. Pictures are not looked into: that would take as
    long as answering.

    Args:
        args: a command's flags.
        question_file: that is read.
        folders: of the checkpoint, and of its vision tower where that lies elsewhere.
    """
    left_out = FREE | REDUCTION | set(method_fields(args.method))
    record = {name: value for name, value in vars(args).items() if name not in left_out}
    return {
        **_settled(record),
        "questions_sha256": file_digest(question_file),
        **({"truth_sha256": file_digest(args.truth_file)} if getattr(args, "truth_file", None) else {}),
        "checkpoint": checkpoint_files(folders),
        "versions": versions(),
    }


def reduction_record(reduction: ReductionConfig | None, of_model: dict) -> dict | None:
    """The reduction as plain values, without those that spell out what would hold anyway; None for the dense model.

    Args:
        of_model: hyper-parameters whose default is another one on this model than the method's own.
    """
    if reduction is None:
        return None
    defaults = {name: field.default for name, field in method_fields(reduction.method).items()} | of_model
    spelled = {name for name, value in reduction.fields.items() if defaults.get(name) == value}
    return {name: value for name, value in reduction.to_dict().items() if name not in spelled}


def _settled(flags: dict) -> dict:
    """Flags with paths from the root, and the kind of device that computes: one GPU answers as another does."""
    paths = {name: str(Path(flags[name]).resolve()) for name in PATHS if flags.get(name) is not None}
    settled = {**flags, **paths}
    if settled.get("device", "") is None:
        import torch  # only it knows whether it can use a GPU

        settled["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if "device" in settled:
        settled["device"] = settled["device"].split(":")[0]
    return settled


def versions() -> dict[str, str | None]:
    """The versions of the libraries that answer; None for one that is not installed but runs from its folder."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def file_digest(file: str | Path) -> str:
    """The SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checkpoint_files(folders: Iterable[str | Path]) -> dict[str, list[int]]:
    """Size and time of change, in nanoseconds, of the files that make a model; read they would be too long."""
    files = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for file in sorted(folder.iterdir()):
            if file.is_file() and (file.name.endswith(WEIGHTS) or file.name in SETTINGS):
                files[f"{folder.name}/{file.name}"] = [file.stat().st_size, file.stat().st_mtime_ns]
    return files


def difference(begun: dict, now: dict) -> str:
    """What differs between the record of a run and what a command would do now; "" for nothing.

    A record from before there were digests and versions is compared by what it has, in today's spelling: the rows that
    it stands for cost hours, and nothing says that anything changed. The run goes on under a record of today.
    """
    if "versions" in now and "versions" not in begun:
        begun = {**_settled(begun), **{key: value for key, value in now.items() if key in LATER - begun.keys()}}
    keys = [key for key in {**begun, **now} if key not in begun or key not in now or begun[key] != now[key]]
    return "; ".join(_shown(key, begun.get(key), now.get(key)) for key in keys)


def _shown(key: str, begun, now) -> str:
    """A difference; of two objects the part that differs."""
    if isinstance(begun, dict) and isinstance(now, dict):
        keys = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
        begun, now = ({name: side[name] for name in keys if name in side} for side in (begun, now))
    return f"{key}: {begun!r}, now {now!r}"
