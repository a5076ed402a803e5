"""Clips in the tools: frames with what is kept of them, and methods compared on questions about clips."""

import json
import shutil

import pytest
from clip_helpers import write_questions
from run_helpers import error_of, read
from tiny_video import TOKENS, build_checkpoint, draw_clip

from vscan.config import ReductionConfig
from vscan.io.load import load
from vscan.tools import compare, plot

PATCHES = 64  # of a frame


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny-video-llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder: four questions about two clips."""
    path = tmp_path_factory.mktemp("data")
    for number in range(2):
        draw_clip(path / "videos" / f"clip{number}.mp4", seed=number, number=8 * (number + 1))
    write_questions(path, [(f"v_{number}", f"clip{number % 2}", f"what is {number}?") for number in range(4)])
    return path


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every figure that is drawn."""
    calls, figure = [], plot.figure
    monkeypatch.setattr(plot, "figure", lambda *args: calls.append(args) or figure(*args))
    return calls


def test_a_clips_frames_stand_in_two_rows_with_what_is_kept_of_each(checkpoint, folder, drawn):
    config = ReductionConfig(visual_tokens=24, layers=((4, 8),))
    plot.draw(load(str(checkpoint), device="cpu"), config, folder / "videos" / "clip0.mp4", "What?")
    ((panels, grid, stages, texts),) = drawn
    ((panel,), size) = panels, panels[0].image.size
    assert (grid, panel.first, panel.tiles, size) == ((8, 8), 0, (2, 4), (4 * 224, 2 * 224))
    assert [caption for caption, _ in stages] == [f"encoder: 200 of {TOKENS}", f"layer 4: 72 of {TOKENS}"]
    (_, first), (_, second) = stages
    kept = sorted(first["local scan"] + first["global scan"])
    assert kept[0] == -1  # the [CLS] of a frame, which is no patch
    frames = [token // PATCHES for token in kept if token >= 0]
    assert [frames.count(frame) for frame in range(8)] == [24] * 8
    assert {*second["local scan"], *second["global scan"]} <= set(kept)
    assert len(plot.assemble(kept, grid, panel)) == 8 * 24
    assert texts[0] == "Question: What?"


def test_the_command_draws_a_clip_and_asks_what_happens(checkpoint, folder, drawn, tmp_path, capsys):
    output = tmp_path / "kept.png"
    flags = ["--model-path", checkpoint, "--average", 16, "--device", "cpu", "--output", output]
    plot.main([str(word) for word in (folder / "videos" / "clip1.mp4", *flags)])
    assert capsys.readouterr().out == f"{output}\n"
    assert drawn[0][3][0] == "Question: What happens in this video?"
    assert output.is_file()


def test_a_clip_that_cannot_be_drawn_is_one_line(checkpoint, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llava.eval.answering.load_checked", None)
    (tmp_path / "half.mp4").write_bytes(b"no clip")
    flags = ["--model-path", str(checkpoint)]
    error = error_of(plot.main, [str(tmp_path / "half.mp4"), *flags], monkeypatch, capsys)
    assert error.startswith(f"error: {tmp_path / 'half.mp4'}: expected a whole video that FFmpeg can read, got ")
    model = "playground/models/tiny-llava"
    error = error_of(plot.main, [str(folder / "videos" / "clip0.mp4"), "--model-path", model], monkeypatch, capsys)
    assert error.startswith(f"error: model path {model!r}: expected a Video-LLaVA ")


def flags(checkpoint, *more):
    fixed = ["--model-path", checkpoint, "--methods", "vscan,fastervlm", "--tokens", "16", "--device", "cpu"]
    return [str(part) for part in (*fixed, "--max-new-tokens", 2, *more)]


@pytest.mark.parametrize("with_answers", [True, False])
def test_methods_are_compared_on_clips(checkpoint, folder, tmp_path, with_answers, capsys):
    data = shutil.copytree(folder, tmp_path / "data")
    if not with_answers:
        (data / "test_a.json").unlink()
    compare.main(flags(checkpoint, "--data", data, "--output", tmp_path / "out"))
    said = capsys.readouterr().out
    stages = {name: f"| {name}" in said for name in ("dense", "vscan 16", "fastervlm 16")}
    assert all(stages.values())
    assert ("right is what the dense model says" in said) == (not with_answers)
    rows = read(tmp_path / "out" / "vscan-16.jsonl")
    assert [row["question_id"] for row in rows] == [f"v_{number}" for number in range(4)]
    costs = read(tmp_path / "out" / "vscan-16.jsonl.stats.jsonl")
    assert [row["stages"] for row in costs] == [[[0, 200], [4, 72]]] * 4
    record = json.loads((tmp_path / "out" / "dense.jsonl.run.json").read_text())
    assert (record["conv_mode"], record["video_folder"]) == ("llava_v1", str(data / "videos"))


def test_the_flags_name_the_files_one_by_one_too(checkpoint, folder, tmp_path, monkeypatch, capsys):
    named = ["--question-file", folder / "test_q.json", "--video-folder", folder / "videos"]
    compare.main(flags(checkpoint, *named, "--truth-file", folder / "test_a.json", "--limit", 1, "--output", tmp_path))
    assert len(read(tmp_path / "dense.jsonl")) == 1
    for more, expected in (
        (["--truth-file", "a"], "expected --data, or --question-file and --image-folder (of clips"),
        ([*named, "--data", folder], "and not both"),
        ([*named, "--image-folder", folder], "and not both"),
        ([*named[:3], "nowhere"], "video folder: expected a folder, found none at 'nowhere'"),
        ([*named, "--truth-file", "none"], "truth file: expected a file, found none at 'none'"),
        ([*named, "--model-path", "playground/models/tiny-llava"], "expected a Video-LLaVA"),
    ):
        assert expected in error_of(compare.main, flags(checkpoint, *more), monkeypatch, capsys)
