"""The benchmark of the loader for clips, on a tiny model: what it prints, and that a batch takes no more than dense."""

import re
from argparse import Namespace

import pytest
from tiny_video import build_checkpoint

from benchmarks import clips
from benchmarks.clips_parts import DENSE, REDUCED, Loader, measure, report
from vscan.tools.timing import peak_bytes


def loader_of(folder, patch_size, batch_size, average):
    given = {"model_path": build_checkpoint(folder / "model", patch_size=patch_size), "batch_size": batch_size}
    given |= {"average": average, "frames": 10, "width": 64, "new_tokens": 1, "device": "cpu", "dtype": "auto"}
    return Loader(Namespace(**given), folder)


def test_every_part_is_timed_in_every_round(tmp_path):
    seconds, peaks = measure(loader_of(tmp_path, patch_size=28, batch_size=2, average=16), rounds=2)
    assert set(peaks) == {"dense 1", "dense 2", "reduced 1", "reduced 2"}
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(("frames", "pixels", *peaks), 2)
    lines = report(seconds, peaks).splitlines()
    assert lines[0].startswith("of a clip: frames ")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["clips at a time", "-" * 14 + ":", "1", "2"]


def test_a_batch_of_four_clips_never_takes_more_memory_than_dense(tmp_path):
    """With the published number of tokens: where a clip is a few tokens, the tower decides, and rows of [CLS] show."""
    loader = loader_of(tmp_path, patch_size=14, batch_size=4, average=64)
    peaks = {kind: peak_bytes(loader.answers(kind, 4), loader.device) for kind in (DENSE, REDUCED)}
    assert peaks[REDUCED] <= peaks[DENSE]


def test_a_model_that_sees_no_clips_is_refused():
    model = "playground/models/tiny-llava"
    with pytest.raises(ValueError, match=re.escape(f"model path '{model}': expected a Video-LLaVA")):
        clips.main(["--model-path", model])
