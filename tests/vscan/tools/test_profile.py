"""The profile's table: what is exact in it. Times are never looked at."""

import sys

import pytest
import torch
from helpers import tiny_llava

import vscan
from vscan.eval.arguments import run_command
from vscan.flops import average_tokens, decoder_flops, kv_cache_bytes
from vscan.tools import bench as bench_module
from vscan.tools.bench import AFTER, BEFORE, MODELS, Bench, build, plan
from vscan.tools.bench_table import attention_flops, measure, report
from vscan.tools.profile import main
from vscan.tools.timing import peak_bytes, spread, table

TEXT = BEFORE + AFTER


SHALLOW = {"local_layer": 2}  # the tiny tower has seven layers


def measured(method="vscan", averages=(48, 24), fields=SHALLOW, num_views=1, batch_size=1, rounds=1, **sizes):
    bench = Bench(tiny_llava(**sizes), num_views, batch_size)
    rows = plan(method, list(averages), fields, bench.config.num_hidden_layers, bench.num_tokens)
    measure(bench, rows, rounds, new_tokens=2)
    return bench, rows


@pytest.mark.parametrize(
    ("num_views", "batch_size"),
    [(1, 1), (2, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(5, 1), (1, 2)])],
)
def test_the_floor_sees_what_the_reduced_model_sees(num_views, batch_size):
    _, rows = measured(num_views=num_views, batch_size=batch_size)
    assert [row.kind for row in rows] == ["dense", *["reduced", "floor"] * 2]
    assert rows[0].lengths == [TEXT + 144 * num_views] * 6
    for reduced, floor, average in zip(rows[1::2], rows[2::2], (48, 24), strict=True):
        visual = [3 * average // 2] * 3 + [average // 2] * 3
        assert reduced.visual == floor.visual == visual
        assert average_tokens(visual) == average
        assert reduced.lengths == floor.lengths == [TEXT + number * num_views for number in visual]
        assert reduced.kv == floor.kv == batch_size * kv_cache_bytes(reduced.lengths, 2, 8, 4)
        assert reduced.flops == floor.flops == batch_size * decoder_flops([n * num_views for n in visual], 32, 64)
        assert floor.counted < reduced.counted < rows[0].counted
        assert 0 < floor.peak <= reduced.peak < rows[0].peak


def test_the_floors_flops_as_counted_are_those_of_the_layers_worked_out_by_hand():
    _, rows = measured(averages=(24,))
    for row in (rows[0], rows[2]):
        # q and o are 32 wide, k and v 16 (two heads of eight); gate, up and down 64; four heads attend to all pairs.
        expected = sum(
            2 * length * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 4 * 4 * 8 * length**2 for length in row.lengths
        )
        # Some versions of transformers make the rotary angles, four a position and run of layers, by a matmul.
        assert row.counted - expected in (0, 2 * 4 * sum(set(row.lengths)))
    # What a reduction adds to its floor is a key for every arriving column and one query, and the row between them.
    arriving = rows[1].lengths[0]
    added = 2 * arriving * 32 * 16 + 2 * 32 * 32 + 2 * arriving * 4 * 8
    assert rows[1].counted - rows[2].counted - added in (0, 2 * 4 * arriving)


def test_the_floor_computes_what_the_model_computes_on_the_shortened_prompt():
    bench = Bench(tiny_llava(), 1, 2)
    dense, _, floor = plan("random", [40], {}, 6, bench.num_tokens)
    with torch.inference_mode():
        embeds = bench.embed(floor, None)
        assert embeds.shape == (2, TEXT + 40, 32)
        caches = [bench.prefill(dense, embeds), bench.prefill(floor, embeds)]
        for row, cache in zip((dense, floor), caches, strict=True):
            bench.decode(row, cache, 3)
        for layer in range(6):
            expected, got = (cache.layers[layer].keys for cache in caches)
            assert expected.shape[2] == TEXT + 43
            assert torch.equal(expected, got)


def test_what_is_timed_as_selection_gives_what_the_model_gives():
    bench = Bench(tiny_llava(), 3, 1)
    row = plan("vscan", [48], SHALLOW, 6, bench.num_tokens)[1]
    with torch.inference_mode(), bench.reduced(row) as reduction:
        embeds = bench.embed(row, reduction)
        features = bench.selection(reduction)().flatten(0, 1).unsqueeze(0)
        assert row.kept.sum() == 3 * 72
        assert not features[~row.kept[:, BEFORE:-AFTER]].any()
        torch.testing.assert_close(features, embeds[:, BEFORE:-AFTER])
        inner = bench.model.model
        own = torch.stack(list(inner.get_image_features(bench.pixels).pooler_output))
        torch.testing.assert_close(own.flatten(0, 1).unsqueeze(0), features)
        torch.testing.assert_close(bench.text[0, 0], inner.language_model.embed_tokens.weight[1])


@pytest.mark.parametrize(("method", "rounds"), [("vispruner", 2), ("fastervlm", 1), ("random", 1), ("downsample", 1)])
def test_methods_without_a_stage_in_the_decoder_keep_the_average_in_every_layer(method, rounds):
    _, rows = measured(method, (36,), {"important_ratio": 0.25} if method == "vispruner" else {}, rounds=rounds)
    assert rows[1].visual == rows[2].visual == [36] * 6
    assert rows[1].lengths == rows[2].lengths == [TEXT + 36] * 6
    assert {len(row.seconds["prefill"]) for row in rows} == {rounds}


def test_methods_of_the_decoder_keep_what_their_schedules_and_recycling_leave():
    bench, rows = measured("fastv", (60,), {"layer": 2})
    assert rows[1].visual == rows[2].visual == [144, 144, 18, 18, 18, 18]
    assert rows[1].lengths == rows[2].lengths == [TEXT + number for number in rows[1].visual]
    with torch.inference_mode(), bench.reduced(rows[1]) as reduction:
        assert bench.selection(reduction)() is None
    _, rows = measured("sparsevlm", (100,), {})
    assert average_tokens(rows[1].visual) <= 100
    assert rows[1].lengths == rows[2].lengths == [TEXT + number for number in rows[1].visual]
    with pytest.raises(ValueError, match=r"average: not reachable \(at least 48\)"):
        plan("fastv", [40], {"layer": 2}, 6, 144)


@pytest.mark.parametrize("method", ["hired", "tome"])
def test_methods_with_a_budget_for_all_crops_or_blocks_of_their_own(method):
    _, rows = measured(method, (36,), {"hired": {"early_layer": 0}}.get(method, {}), num_views=5)
    assert rows[1].lengths == rows[2].lengths == [TEXT + 5 * 36] * 6


@pytest.mark.parametrize("method", ["divprune", "scope", "visionzip", "prumerge", "cdpruner", "mmtok", "eadp"])
def test_what_is_timed_of_a_selection_is_what_the_model_does(method):
    """Keys, queries and a question are there too."""
    bench, rows = measured(method, (36,), {})
    with torch.inference_mode(), bench.reduced(rows[1]) as reduction:
        selected, (whole, left) = bench.selection(reduction)(), bench.encode(reduction)
    assert (selected != 0).any(dim=-1).equal(left)
    assert left.sum() == 36
    assert whole.shape == selected.shape


def test_the_model_is_dense_again_after_a_run():
    bench, _ = measured(averages=(48,))
    with vscan.reduce(bench.model, visual_tokens=36, **SHALLOW):
        pass


def test_a_model_is_built_with_weights_of_the_right_shape_and_dtype(monkeypatch):
    monkeypatch.setitem(MODELS, "llava-1.5-7b", (1, 32, {"hidden_size": 512, "intermediate_size": 1024}))
    model = build("llava-1.5-7b", 2, torch.bfloat16, torch.device("cpu"), None)
    parameters = dict(model.named_parameters())
    assert {value.dtype for value in parameters.values()} == {torch.bfloat16}
    assert not any(value.is_meta or value.isnan().any() for value in parameters.values())
    per_layer = 4 * 512**2 + 3 * 512 * 1024 + 2 * 512
    tower = sum(value.numel() for name, value in parameters.items() if "vision_tower" in name)
    assert tower == 303_507_456
    decoder = 2 * per_layer + 2 * 32064 * 512 + 512
    projector = 1024 * 512 + 512 + 512 * 512 + 512
    assert sum(value.numel() for value in parameters.values()) == tower + decoder + projector
    inverse = model.model.language_model.rotary_emb.inv_freq  # a buffer, which holds no noise
    assert inverse[0] == 1
    assert 0 < inverse[-1] < 1


def test_sizes_of_all_models(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        bench_module.AutoModelForImageTextToText,
        "from_config",
        lambda config, **rest: seen.update(config=config) or torch.nn.Linear(1, 1),
    )
    for name, (views, layers, _) in MODELS.items():
        build(name, layers, torch.float32, torch.device("cpu"), None)
        text, vision = seen["config"].text_config, seen["config"].vision_config
        sizes = (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads)
        assert sizes == ((4096, 11008, 32, 32) if name.endswith("7b") else (5120, 13824, 40, 40))
        assert text.num_key_value_heads == text.num_attention_heads
        assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size // vision.patch_size) == (1024, 24, 24)
        assert views == (5 if "next" in name else 1)


def test_peak_is_what_is_held_at_once():
    def action():
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second * second
        del second
        return third + 1

    assert peak_bytes(action, torch.device("cpu")) == pytest.approx(8000, abs=100)


def test_attention_is_counted_as_two_products_over_all_pairs():
    assert attention_flops((2, 4, 10, 8), (2, 4, 30, 8), (2, 4, 30, 8)) == 2 * 2 * (2 * 4 * 10 * 30 * 8)


def test_numbers_are_shown_as_median_and_half_of_the_distance_between_quartiles():
    assert spread([0.010, 0.012, 0.020, 0.011, 0.013], "s") == "12 ±1 ms"
    assert spread([1.5], "s") == "1.5 ±0 s"
    assert spread([0.01, 0.02, 0.03], "%") == "2 ±0.5 %"
    assert spread([1.0, 2.0, 3.0]) == "2 ±0.5"
    assert spread([]) == ""


def test_the_table_is_markdown():
    assert table(["", "time"], [["dense", "1"]]).splitlines() == [
        "|       | time |",
        "| ----: | ---: |",
        "| dense |    1 |",
    ]


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_ratios_are_of_one_round_and_a_shortened_decoder_says_what_the_whole_one_gives():
    rows = plan("vscan", [64], {}, 8, 576)
    for row, prefill in zip(rows, ([8.0, 80.0], [2.2, 22.0], [2.0, 20.0]), strict=True):
        row.seconds["prefill"], row.seconds["decode per token"], row.peak = prefill, [0.5, 0.5], 10
    rows[0].seconds["vision tower"], rows[1].seconds["selection+merging"], rows[1].peak = [1, 2], [0.01, 0.02], 5
    *_, head, _, line = cells(report(rows, 32))
    assert head[:7] == ["average", "prefill d/r", "r/f", "32 layers: d/r", "r/f", "decode d/r", "r/f"]
    assert head[7:] == ["selection+merging/tower", "peak r/d"]
    # 32 layers: dense 32, floor 8, and the same 0.2 beside it.
    assert line[:5] == ["64", "3.636 ±0", "1.1 ±0", "3.902 ±0", "1.025 ±0"]
    assert line[5:] == ["1 ±0", "1 ±0", "1 ±0 %", "0.500"]
    *_, head, _, line = cells(report(rows, 8))
    assert head[:5] == ["average", "prefill d/r", "r/f", "decode d/r", "r/f"]
    assert line[:5] == ["64", "3.636 ±0", "1.1 ±0", "1 ±0", "1 ±0"]


def test_the_command_prints_one_table_of_a_checkpoint(small_checkpoint, capsys):
    flags = ["--average", "32", "16", "--rounds", "1", "--new-tokens", "1", "--threads", "1", "--device", "cpu"]
    main(["--model-path", str(small_checkpoint), *flags, "--no-merge"])
    shown = capsys.readouterr().out
    assert "8 of 8 decoder layers, vscan, torch.float32, sdpa, batch 1, 1 x 144 visual and 63 text tokens" in shown
    assert "CPU time on cpu, 1 CPU threads, 1 rounds" in shown
    lines = cells(shown)
    assert [line[0] for line in lines[2:7]] == ["dense", "reduced 32", "floor 32", "reduced 16", "floor 16"]
    dense, reduced = lines[2], lines[5]
    assert all(dense[i] for i in (1, 3, 4, 5, 6, 7, 8))
    assert reduced[1] == ""
    assert all(reduced[i] for i in range(2, 9))
    # 64 wide, 128 in the MLP, keys and values of 64 numbers in float32.
    assert dense[6] == f"{2 * 8 * 207 * 64 * 4 / 2**20:.1f} MiB"
    assert reduced[7] == f"{decoder_flops([24] * 4 + [8] * 4, 64, 128) / 1e9:.4g} G"
    assert [line[0] for line in lines[-2:]] == ["32", "16"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "llava-1.5-7b"], "expected either --model-path, or --model together with --random-weights"),
        (["--random-weights", "--model-path", "x", "--model", "llava-1.5-7b"], "expected either --model-path, or"),
        (["--model-path", "x", "--layers", "2"], "--layers: expected none beside --model-path, got 2"),
        (["--layers", "33"], "--layers: expected at most the 32 of llava-1.5-7b, got 33"),
        (["--layers", "3"], "num_layers: expected an even count"),
        (["--average", "63"], "average: expected an even count"),
        (["--average", "384"], "--average: expected fewer than the 576 tokens of a view to enter the decoder, got 384"),
        (["--device", "toaster"], "--device: expected a device of this machine, got 'toaster'"),
    ],
)
def test_flags_that_do_not_fit_are_said_in_one_line(flags, expected):
    if not {"--model", "--model-path"} & set(flags):
        flags = ["--model", "llava-1.5-7b", "--random-weights", *flags]
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        main(flags)
    assert expected in str(error.value)


def test_the_command_ends_with_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["profile", "--model-path", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: model path 'nowhere': expected a checkpoint folder with config.json\n"
