"""The profile's table on Qwen2.5-VL: what is exact in it. Times are never looked at."""

import pytest
import torch
from qwen_helpers import END, IMAGE_TOKEN, START, tiny_qwen
from tiny_qwen import build_checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vscan.compat import cache_of
from vscan.flops import decoder_flops, kv_cache_bytes
from vscan.tools import bench_qwen
from vscan.tools.bench import AFTER, BEFORE
from vscan.tools.bench_qwen import MODELS, QwenBench, build, grid_of, plan
from vscan.tools.bench_table import OUTSIDE_BLOCKS, measure, report, whole_tower
from vscan.tools.profile import image_size, main

ONE, TWO = [(1, 12, 16)], [(1, 12, 16), (1, 8, 10)]  # 48 tokens; 48 + 20


def measured(grids=ONE, averages=(0.4, 0.2), batch_size=1, rounds=1, method="vscan", fields=None):
    made = QwenBench(tiny_qwen(), grids, batch_size)
    rows = plan(method, list(averages), fields or {}, 4, made.images)
    measure(made, rows, rounds, new_tokens=2)
    return made, rows


def angle_flops(batch_size, length):
    """What torch counts of the rotary angles of a batch: nothing unless they are made by a matrix product."""
    with FlopCounterMode(display=False) as counter:
        tiny_qwen().model.language_model.rotary_emb(torch.zeros(1), torch.zeros(3, batch_size, length).long())
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("grids", "batch_size", "schedules"),
    [
        # 0.6 and 0.3 of the tokens of each image enter, and a third of what entered stays.
        (ONE, 1, [[28, 28, 9, 9], [14, 14, 4, 4]]),
        pytest.param(ONE, 3, [[28, 28, 9, 9], [14, 14, 4, 4]], marks=pytest.mark.slow),
        pytest.param(TWO, 1, [[40, 40, 13, 13], [20, 20, 6, 6]], marks=pytest.mark.slow),
        (TWO, 2, [[40, 40, 13, 13], [20, 20, 6, 6]]),
    ],
)
def test_the_floor_sees_what_the_reduced_model_sees(grids, batch_size, schedules):
    made, rows = measured(grids, batch_size=batch_size)
    text, dense = BEFORE + AFTER + 2 * len(grids), sum(made.images)
    assert [row.kind for row in rows] == ["dense", *["reduced", "floor"] * 2]
    assert rows[0].lengths == [text + dense] * 4
    for reduced, floor, schedule in zip(rows[1::2], rows[2::2], schedules, strict=True):
        assert reduced.visual == floor.visual == schedule
        assert reduced.lengths == floor.lengths == [text + number for number in schedule]
        assert reduced.kv == floor.kv == batch_size * kv_cache_bytes(reduced.lengths, 2, 8, 4)
        assert reduced.flops == floor.flops == batch_size * decoder_flops(schedule, 32, 64)
        assert floor.counted < reduced.counted < rows[0].counted
        # Keys of what arrives at the pruning layer, one query, and its row: twice a multiply-add each.
        added = 2 * reduced.lengths[0] * 32 * 16 + 2 * 32 * 32 + 2 * reduced.lengths[0] * 4 * 8
        # Rotary angles are for all rows here and for one in the floor; where they are a matrix product, they count.
        lengths = (reduced.lengths[0], reduced.lengths[-1])
        angles = sum(angle_flops(batch_size, length) - angle_flops(1, length) for length in lengths)
        assert reduced.counted - floor.counted == batch_size * added + angles
        assert {len(row.seconds["prefill"]) for row in rows} == {1}


def caches_equal(found, expected) -> bool:
    pairs = zip(found.layers, expected.layers, strict=True)
    return all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)


@pytest.mark.parametrize("grids", [ONE, TWO])
def test_a_dense_and_a_reduced_row_compute_what_the_model_computes(grids):
    made = QwenBench(tiny_qwen(), grids, 2)
    images = [token for number in made.images for token in (START, *[IMAGE_TOKEN] * number, END)]
    ids = torch.tensor([[1] * BEFORE + images + [1] * AFTER] * 2)
    given = {"input_ids": ids, "pixel_values": made.pixels, "image_grid_thw": made.grids}
    given["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int()
    for row in plan("vscan", [0.4], {}, 4, made.images)[:2]:
        with torch.inference_mode(), made.reduced(row) as reduction:
            expected = cache_of(made.model.model(**given, use_cache=True))
            assert expected.get_seq_length(3) == sum([BEFORE, AFTER, 2 * len(grids), row.visual[3]])
            assert caches_equal(made.whole(row, reduction), expected)
            assert caches_equal(made.prefill(row, made.embed(row, reduction)), expected)


def test_the_floor_computes_what_the_decoder_computes_on_the_shortened_prompt():
    made = QwenBench(tiny_qwen(), TWO, 2)
    _, _, floor = plan("random", [0.5], {}, 4, made.images)
    with torch.inference_mode():
        embeds = made.embed(floor, None)
        assert embeds.shape == (2, BEFORE + AFTER + 4 + 24 + 10, 32)
        cache = made.prefill(floor, embeds)
        expected = cache_of(made.decoder(inputs_embeds=embeds, use_cache=True))
        assert caches_equal(cache, expected)


@pytest.mark.parametrize("method", ["vscan", "vispruner", "random"])
def test_what_is_timed_as_selection_gives_what_the_tower_gives_and_leaves_it_as_it_was(method):
    made = QwenBench(tiny_qwen(), TWO, 1)
    row = plan(method, [0.4], {}, 4, made.images)[1]
    tower = made.visual_tower
    with torch.inference_mode():
        dense = made.tower()
        with made.reduced(row) as reduction:
            select, expected, before = made.selection(reduction), made.tower(), dict(vars(tower))
            assert made.kept.sum() == row.visual[0]
            assert not expected[~made.kept].any()
            for _ in range(2):
                assert torch.equal(select(), expected)
            assert vars(tower) == before
        assert not any("forward" in vars(module) for module in tower.modules())
        assert torch.equal(made.tower(), dense)


def test_outside_the_blocks_are_the_patch_embedding_and_the_merger():
    made = QwenBench(tiny_qwen(), ONE, 1)
    tower = made.visual_tower
    with torch.inference_mode():
        found, blocks = made.outside_blocks(), len(tower.blocks)
        assert torch.equal(found, tower.merger(tower.patch_embed(made.pixels)))
    assert blocks == 4


def test_a_cut_tower_says_what_the_whole_one_takes():
    rows = plan("vscan", [0.4], {}, 4, [48])
    for row in rows:
        row.seconds["prefill"], row.seconds["decode per token"], row.peak = [1.0, 1.0], [1.0, 1.0], 10
    rows[0].seconds |= {"vision tower": [5.0, 50.0], OUTSIDE_BLOCKS: [1.0, 10.0]}
    rows[1].seconds["selection+merging"] = [0.34, 3.4]
    assert whole_tower(rows[0], 8, 32) == [17.0, 170.0]
    lines = report(rows, 4, "scores+selection+merging", (8, 32)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert cells[0][1:3] == ["vision tower", "scores+selection+merging"]
    assert cells[2][1:3] == ["27.5 ±11 s", ""]
    assert cells[5][-2:] == ["scores+selection+merging/tower of 32 blocks", "peak r/d"]
    assert cells[7][0] == "0.4"
    assert cells[7][-2:] == ["2 ±0 %", "1.000"]


def test_sizes_of_all_models(monkeypatch):
    monkeypatch.setattr(bench_qwen, "random_model", lambda config, *rest: config)
    expected = {
        "qwen2.5-vl-3b": (2048, 36, 16, 2, 11008, 151936, True),
        "qwen2.5-vl-7b": (3584, 28, 28, 4, 18944, 152064, False),
        "qwen2.5-vl-32b": (5120, 64, 40, 8, 27648, 152064, False),
    }
    assert set(expected) == set(MODELS)
    for name, sizes in expected.items():
        config = build(name, sizes[1], 32, torch.float32, torch.device("cpu"), None)
        text, vision = config.text_config, config.vision_config
        found = (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads)
        assert (*found, text.intermediate_size, text.vocab_size, config.tie_word_embeddings) == sizes
        assert text.rope_parameters["mrope_section"] == [16, 24, 24]
        assert (vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size) == (32, 1280, 16, 3420)
        assert (vision.patch_size, vision.spatial_merge_size, vision.window_size) == (14, 2, 112)
        assert (vision.fullatt_block_indexes, vision.out_hidden_size) == ([7, 15, 23, 31], text.hidden_size)


def test_an_images_sides_are_rounded_to_whole_tokens():
    assert grid_of(896, 896) == (1, 64, 64)
    assert grid_of(1280, 720) == (1, 52, 92)  # 45.7 and 25.7 tokens
    assert grid_of(3, 40) == (1, 2, 2)
    assert image_size("1280x720") == (1280, 720)


@pytest.fixture
def small(monkeypatch):
    """A "7B" whose sizes take a moment; M-RoPE's sections need heads of 128."""
    monkeypatch.setitem(MODELS, "qwen2.5-vl-7b", dict(zip(bench_qwen.SIZES, (256, 28, 2, 1, 64), strict=True)))
    monkeypatch.setattr(bench_qwen, "VISION", {"hidden_size": 32, "intermediate_size": 16, "num_heads": 2})
    return ["--model", "qwen2.5-vl-7b", "--random-weights", "--device", "cpu"]


def test_the_command_prints_one_table_of_a_cut_model(small, capsys):
    sizes = ["--image-size", "112x168", "56x56", "--layers", "2", "--vision-layers", "16", "--average", "0.5", "0.25"]
    main([*small, *sizes, "--rounds", "1", "--new-tokens", "1", "--threads", "1"])
    shown = capsys.readouterr().out
    expected = "2 of 28 decoder layers, vscan, torch.float32, sdpa, batch 1, 16 of 32 vision blocks, "
    assert expected + "24 + 4 visual and 67 text tokens" in shown
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line[:1] == "|"]
    assert [line[0] for line in lines[2:7]] == ["dense", "reduced 0.5", "floor 0.5", "reduced 0.25", "floor 0.25"]
    assert lines[2][6] == f"{2 * 2 * (28 + 67) * 128 * 4 / 2**20:.1f} MiB"
    assert lines[3][7] == f"{decoder_flops([18 + 3, 7], 256, 64) / 1e9:.4g} G"
    assert lines[7][-2] == "scores+selection+merging/tower of 32 blocks"
    assert [line[0] for line in lines[-2:]] == ["0.5", "0.25"]


def test_the_command_prints_one_table_of_a_checkpoint(tmp_path, capsys):
    build_checkpoint(tmp_path / "tiny-qwen")
    flags = [
        "--model-path",
        str(tmp_path / "tiny-qwen"),
        "--image-size",
        "112x168",
        "--average",
        "0.3",
        "--device",
        "cpu",
    ]
    main([*flags, "--rounds", "1", "--new-tokens", "1", "--threads", "1"])
    shown = capsys.readouterr().out
    assert "6 of 6 decoder layers, vscan, torch.float32, sdpa, batch 1, 24 visual and 65 text tokens" in shown
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line[:1] == "|"]
    assert [line[0] for line in lines[2:5]] == ["dense", "reduced 0.3", "floor 0.3"]
    assert lines[3][7] == f"{decoder_flops([10] * 3 + [3] * 3, 64, 128) / 1e9:.4g} G"
    with pytest.raises(ValueError, match=r"^--vision-layers: expected none beside --model-path, got 8$"):
        main([*flags, "--vision-layers", "8"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--average", "192"], "--average: expected shares between 0 and 1 such as 0.222, got 192"),
        (["--average", "1.5"], "--average: expected shares between 0 and 1 such as 0.222, got 1.5"),
        (["--average", "0.7"], "average: expected a share (float) above 0 and below 2/3, got 0.7"),
        (["--layers", "3"], "num_layers: expected an even count"),
        (["--layers", "29"], "--layers: expected at most the 28 of qwen2.5-vl-7b, got 29"),
        (["--vision-layers", "12"], "--vision-layers: expected 8, 16, 24 or 32, got 12"),
        (["--vision-layers", "40"], "--vision-layers: expected 8, 16, 24 or 32, got 40"),
        (["--layers", "2", "--vision-layers", "8"], "VScan: expected a local layer below the global one, got layer 7"),
    ],
)
def test_flags_that_do_not_fit_are_said_in_one_line(small, flags, expected):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        main([*small, *flags])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--image-size", "28x28"], "--image-size: expected none beside llava-1.5-7b, got [(28, 28)]"),
        (["--vision-layers", "8"], "--vision-layers: expected none beside llava-1.5-7b, got 8"),
        (["--average", "0.5"], "--average: expected counts of tokens such as 192, got [0.5]"),
    ],
)
def test_flags_of_another_family_are_refused(flags, expected):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        main(["--model", "llava-1.5-7b", "--random-weights", *flags])
    assert expected in str(error.value)


@pytest.mark.parametrize("size", ["28", "0x28", "28x", "x", "a x b", "-1x28"])
def test_an_image_size_that_is_none_is_refused(small, size, capsys):
    with pytest.raises(SystemExit) as error:
        main([*small, f"--image-size={size}"])
    assert error.value.code == 2
    assert "expected width x height in pixels such as 1280x720, got" in capsys.readouterr().err
