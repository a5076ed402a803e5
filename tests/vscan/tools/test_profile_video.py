"""The profile's table on Video-LLaVA: what is exact in it."""

import pytest
from tiny_video import build_checkpoint

from llava.model.builder import load_model
from llava.model.conversion import convert
from vscan.flops import decoder_flops, kv_cache_bytes
from vscan.io.load import checkpoint_of
from vscan.tools import bench_video, profile
from vscan.tools.bench_table import measure, prepare, report
from vscan.tools.bench_video import AFTER, BEFORE, FRAMES, VideoBench, plan

TEXT, PATCHES, LAYERS = BEFORE + AFTER, 64, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny-video-llava")


@pytest.mark.parametrize(
    ("format", "method", "visual"),
    [
        ("original", "vscan", [FRAMES * (36 + 1)] * 4 + [FRAMES * (12 + 1)] * 4),
        ("stock", "vscan", [FRAMES * (36 + 1)] * 4 + [FRAMES * (12 + 1)] * 4),
        ("original", "hired", [FRAMES * (24 + 1)] * 8),
        ("original", "tome", [FRAMES * (24 + 1)] * 8),
        ("original", "fastv", [FRAMES * (PATCHES + 1)] * 2 + [FRAMES * ((24 * 8 - 2 * PATCHES) // 6)] * 6),
    ],
)
def test_the_floor_sees_what_the_reduced_model_sees(folder, tmp_path, format, method, visual):
    if format == "stock":
        convert(folder, tmp_path / "hf", drop_temporal=True)
    bench = VideoBench(load_model(folder if format == "original" else tmp_path / "hf", device="cpu"), 2)
    rows = plan(method, [24], {}, LAYERS, PATCHES)
    assert str(bench) == f"8 x 65 visual and {TEXT} text tokens"
    measure(bench, rows, 1, new_tokens=2)
    dense, reduced, floor = rows
    assert dense.lengths == [TEXT + FRAMES * (PATCHES + 1)] * LAYERS
    assert reduced.visual == floor.visual == visual
    assert reduced.lengths == floor.lengths == [TEXT + number for number in visual]
    assert reduced.kv == 2 * kv_cache_bytes(reduced.lengths, 4, 16, 4)
    assert reduced.flops == floor.flops == 2 * decoder_flops(visual, 64, 128)
    assert floor.counted <= reduced.counted < dense.counted  # the same where the decoder prunes nothing
    assert floor.peak <= reduced.peak < dense.peak
    printed = report(rows, LAYERS)
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:5]] == ["dense", "reduced 24", "floor 24"]


def test_sparsevlm_counts_what_it_recycles_of_a_whole_clip(folder):
    bench = VideoBench(load_model(folder, device="cpu"), 1)
    rows = plan("sparsevlm", [24], {}, LAYERS, PATCHES)
    measure(bench, rows, 1, new_tokens=1)
    assert rows[1].lengths == rows[2].lengths == [TEXT + number for number in rows[1].visual]


def test_the_command_takes_what_the_module_has(folder):
    assert tuple(bench_video.MODELS) == profile.VIDEO
    assert checkpoint_of(folder).sees_clips
    parser_defaults = {"model": None, "random_weights": False, "layers": None, "vision_layers": None}
    args = type("Args", (), {**parser_defaults, "model_path": str(folder), "image_size": None, "average": None})
    profile.check(args)
    assert args.average == bench_video.AVERAGES
    given = {"average": [24], "method": "vscan", "batch_size": 1, "device": "cpu", "dtype": "auto", "threads": None}
    for name, value in {**given, "attn_implementation": None}.items():
        setattr(args, name, value)
    bench, rows, num_layers = prepare(args, {})
    assert isinstance(bench, VideoBench)
    assert (len(rows), num_layers) == (3, LAYERS)
    with pytest.raises(ValueError, match="expected fewer than the 64 tokens of a frame to enter the decoder, got 48"):
        plan("vscan", [48], {}, LAYERS, PATCHES)
