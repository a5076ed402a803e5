"""The paper's printed costs, to the last printed digit, and what must hold for every schedule."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscan.config import count
from vscan.flops import (
    average_tokens,
    decoder_flops,
    kv_cache_bytes,
    kv_share,
    retention,
    tokens_per_layer,
    vscan_schedule,
    vscan_shares,
)

LLAVA_7B = {"hidden_size": 4096, "intermediate_size": 11008}
NUM_LAYERS = 32

counts = st.integers(0, 4096)
schedules = st.lists(counts, min_size=1, max_size=64)
sizes = st.integers(1, 8192)
even_averages = st.integers(1, 2048).map(lambda half: 2 * half)
even_num_layers = st.integers(1, 40).map(lambda half: 2 * half)


def two_stage(average):
    return tokens_per_layer(NUM_LAYERS, *vscan_schedule(average, NUM_LAYERS))


@st.composite
def stages(draw):
    """Arguments of `tokens_per_layer` whose stages may ask for more than arrives."""
    num_layers = draw(st.integers(1, 48))
    at = sorted(draw(st.sets(st.integers(0, num_layers - 1), max_size=4)))
    return num_layers, draw(counts), [(layer, draw(counts)) for layer in at]


def test_the_module_loads_without_torch():
    code = "import sys, vscan.flops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize(
    ("tokens", "digits", "printed"),
    [
        (576, 3, 3.817),
        (2880, 3, 20.825),
        (192, 3, 1.253),
        (128, 3, 0.833),
        (960, 3, 6.459),
        (320, 3, 2.099),
        (192, 4, 1.2531),
        (128, 4, 0.8332),
        (64, 4, 0.4155),
        (960, 4, 6.4586),
        (320, 4, 2.0992),
    ],
)
def test_flops_at_a_uniform_count_are_the_printed_ones(tokens, digits, printed):
    assert round(decoder_flops([tokens] * NUM_LAYERS, **LLAVA_7B) / 1e12, digits) == printed


def test_the_printed_0_415_is_cut_not_rounded():
    tera = decoder_flops([64] * NUM_LAYERS, **LLAVA_7B) / 1e12
    assert math.floor(tera * 1000) / 1000 == 0.415
    assert round(tera, 3) == 0.416


@pytest.mark.parametrize(
    ("average", "digits", "expected"),
    [(192, 4, 1.2555), (128, 4, 0.8343), (64, 4, 0.4158), (960, 3, 6.519), (320, 3, 2.106)],
)
def test_flops_of_the_two_stage_schedule(average, digits, expected):
    assert round(decoder_flops(two_stage(average), **LLAVA_7B) / 1e12, digits) == expected


def test_flops_are_counted_term_by_term():
    assert decoder_flops([5], hidden_size=2, intermediate_size=3) == 4 * 5 * 4 + 2 * 25 * 2 + 3 * 5 * 2 * 3
    assert decoder_flops([5, 0], hidden_size=2, intermediate_size=3) == 270


@given(schedules, st.data(), st.integers(1, 64), sizes, sizes)
def test_flops_grow_with_the_tokens_of_any_layer(schedule, data, more, hidden_size, intermediate_size):
    layer = data.draw(st.integers(0, len(schedule) - 1))
    larger = [*schedule[:layer], schedule[layer] + more, *schedule[layer + 1 :]]
    fewer = decoder_flops(schedule, hidden_size, intermediate_size)
    assert decoder_flops(larger, hidden_size, intermediate_size) > fewer


@given(counts, st.integers(1, 64), sizes, sizes)
def test_flops_of_a_uniform_schedule_are_layers_times_one_layer(tokens, num_layers, d, m):
    one_layer = 4 * tokens * d * d + 2 * tokens * tokens * d + 3 * tokens * d * m
    assert decoder_flops([tokens] * num_layers, d, m) == num_layers * one_layer


@given(even_averages, even_num_layers, sizes, sizes)
def test_two_stages_cost_more_than_the_same_average_in_every_layer(average, num_layers, d, m):
    two_stages = tokens_per_layer(num_layers, *vscan_schedule(average, num_layers))
    # n^2 is convex: half the layers at 1.5 x and half at 0.5 x the average exceed it by a quarter of its square.
    surplus = 2 * d * average**2 * num_layers // 4
    assert decoder_flops(two_stages, d, m) == decoder_flops([average] * num_layers, d, m) + surplus


# ------------------------------------------------------------------------------------------------------ schedules


def test_a_layer_sees_the_tokens_that_its_own_stage_leaves():
    assert tokens_per_layer(4, 9, ((2, 3),)) == [9, 9, 3, 3]
    assert tokens_per_layer(4, 9, [(0, 5), (3, 0)]) == [5, 5, 5, 0]
    assert tokens_per_layer(2, 9, ()) == [9, 9]


def test_a_stage_never_grows():
    assert tokens_per_layer(6, 9, [(1, 20), (2, 4), (4, 7)]) == [9, 9, 4, 4, 4, 4]


@given(stages())
def test_a_schedule_keeps_every_stage_within_its_budget(arguments):
    num_layers, visual_tokens, layers = arguments
    schedule = tokens_per_layer(*arguments)
    assert len(schedule) == num_layers
    for layer, tokens in enumerate(schedule):
        assert tokens == min([visual_tokens, *(budget for at, budget in layers if at <= layer)])


@pytest.mark.parametrize(
    ("average", "expected"),
    [(192, (288, ((16, 96),))), (128, (192, ((16, 64),))), (64, (96, ((16, 32),)))],
)
def test_vscan_schedules_of_the_paper(average, expected):
    assert vscan_schedule(average, NUM_LAYERS) == expected


def test_vscan_prunes_qwen_in_its_middle_layer():
    assert vscan_schedule(64, 28) == (96, ((14, 32),))


@given(even_averages, even_num_layers)
def test_a_vscan_schedule_meets_its_average_exactly(average, num_layers):
    assert average_tokens(tokens_per_layer(num_layers, *vscan_schedule(average, num_layers))) == average


def test_average_and_retention():
    schedule = [288] * 16 + [96] * 16
    assert average_tokens(schedule) == 192
    assert average_tokens([1, 2]) == 1.5
    assert retention(schedule, 576) == pytest.approx(1 / 3)
    assert retention([576] * NUM_LAYERS, 576) == 1
    assert retention([0], 576) == 0


@given(schedules, counts)
def test_retention_is_the_average_as_a_share(schedule, more):
    dense = max(max(schedule), 1) + more
    share = retention(schedule, dense)
    assert 0 <= share <= 1
    assert share * dense == pytest.approx(average_tokens(schedule))


# ------------------------------------------------------------------------------------------------------- KV cache


@pytest.mark.parametrize(
    ("average", "dense", "text_tokens", "printed"),
    [(192, 576, 63, 39.9), (64, 576, 63, 19.9), (960, 2880, 65, 34.8), (320, 2880, 65, 13.1)],
)
def test_kv_shares_are_the_printed_ones(average, dense, text_tokens, printed):
    assert round(100 * kv_share(two_stage(average), dense, text_tokens), 1) == printed


def test_no_single_text_length_gives_all_four_printed_kv_shares():
    def fits(dense, printed):
        return [
            text
            for text in range(200)
            if all(round(100 * kv_share(two_stage(avg), dense, text), 1) == share for avg, share in printed.items())
        ]

    assert fits(576, {192: 39.9, 64: 19.9}) == [63]
    assert fits(2880, {960: 34.8, 320: 13.1}) == [65, 66, 67]
    assert round(100 * kv_share(two_stage(960), 2880, 63), 1) == 34.8
    assert round(100 * kv_share(two_stage(320), 2880, 63), 1) == 13.0  # printed: 13.1


def test_kv_bytes_of_llava_7b_in_half_precision_are_half_a_mebibyte_a_token():
    # VisPruner's efficiency table prints 1440 MB at 2880 tokens.
    assert kv_cache_bytes([2880] * NUM_LAYERS, num_kv_heads=32, head_dim=128, bytes_per_value=2) == 1440 * 2**20


@given(schedules, st.integers(1, 64), st.integers(1, 256), st.integers(1, 8))
def test_kv_bytes_add_up_over_keys_values_and_layers(lengths, num_kv_heads, head_dim, bytes_per_value):
    expected = sum(len("kv") * length * num_kv_heads * head_dim * bytes_per_value for length in lengths)
    assert kv_cache_bytes(lengths, num_kv_heads, head_dim, bytes_per_value) == expected


@given(schedules, counts, counts)
def test_the_kv_share_is_the_ratio_of_the_two_caches(schedule, more, text_tokens):
    dense = max(max(schedule), 1) + more
    reduced = kv_cache_bytes([visual + text_tokens for visual in schedule], 8, 128, 2)
    full = kv_cache_bytes([dense + text_tokens] * len(schedule), 8, 128, 2)
    assert kv_share(schedule, dense, text_tokens) == pytest.approx(reduced / full)


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens_per_layer(0, 9, ()), "num_layers: expected an int of at least 1, got 0"),
        (lambda: tokens_per_layer(4, -1, ()), "visual_tokens: expected an int of at least 0, got -1"),
        (lambda: tokens_per_layer(4, 9.0, ()), "visual_tokens: expected an int of at least 0, got 9.0"),
        (lambda: tokens_per_layer(4, True, ()), "visual_tokens: expected an int of at least 0, got True"),
        (lambda: tokens_per_layer(4, 9, [(2, -3)]), "budget of layer 2: expected a count of at least 0, got -3"),
        (lambda: tokens_per_layer(4, 9, [(4, 3)]), "expected a decoder layer of 0 to 3, got 4"),
        (lambda: tokens_per_layer(4, 9, [(-1, 3)]), "expected a decoder layer of 0 or more, got -1"),
        (lambda: tokens_per_layer(4, 9, [(2, 5), (1, 3)]), "expected ascending decoder layers, got 1 after 2"),
        (lambda: tokens_per_layer(4, 9, [(2, 5), (2, 3)]), "expected ascending decoder layers, got 2 after 2"),
        (lambda: average_tokens([]), "tokens_per_layer: expected one count for each layer, got an empty sequence"),
        (lambda: average_tokens([3, -1]), "tokens_per_layer: layer 1: expected an int of at least 0, got -1"),
        (lambda: retention([9, 3], 8), "tokens_per_layer: layer 0: expected at most the 8 of the dense run, got 9"),
        (lambda: retention([0], 0), "dense_tokens: expected an int of at least 1, got 0"),
        (lambda: vscan_schedule(0, 32), "average: expected an int of at least 1, got 0"),
        (lambda: vscan_schedule(65, 32), "average: expected an even count, .*, got 65"),
        (lambda: vscan_schedule(64, 31), "num_layers: expected an even count, .*, got 31"),
        (lambda: vscan_schedule(64, 0), "num_layers: expected an int of at least 1, got 0"),
        (lambda: decoder_flops([], 2, 3), "tokens_per_layer: expected one count for each layer, got an empty"),
        (lambda: decoder_flops([4, -5], 2, 3), "tokens_per_layer: layer 1: expected a number of at least 0, got -5"),
        (lambda: decoder_flops([4], 0, 3), "hidden_size: expected an int of at least 1, got 0"),
        (lambda: decoder_flops([4], 2, -3), "intermediate_size: expected an int of at least 1, got -3"),
        (lambda: kv_cache_bytes([], 8, 4, 2), "lengths: expected one count for each layer, got an empty"),
        (lambda: kv_cache_bytes([4, -1], 8, 4, 2), "lengths: layer 1: expected an int of at least 0, got -1"),
        (lambda: kv_cache_bytes([4], 0, 4, 2), "num_kv_heads: expected an int of at least 1, got 0"),
        (lambda: kv_cache_bytes([4], 8, 0, 2), "head_dim: expected an int of at least 1, got 0"),
        (lambda: kv_cache_bytes([4], 8, 4, 0), "bytes_per_value: expected an int of at least 1, got 0"),
        (lambda: kv_share([4, -4], 8, 5), "visual_tokens_per_layer: layer 1: expected an int of at least 0, got -4"),
        (lambda: kv_share([4], 0, 5), "dense_visual: expected an int of at least 1, got 0"),
        (lambda: kv_share([4], 8, -5), "text_tokens: expected an int of at least 0, got -5"),
        (
            lambda: kv_share([4, 9], 8, 5),
            "visual_tokens_per_layer: layer 1: expected at most the 8 of the dense run, got 9",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_expected_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_layer_that_is_not_the_middle_one_gets_budgets_near_the_average():
    assert vscan_schedule(64, 8, layer=5) == (85, ((5, 29),))
    assert vscan_schedule(64, 8, layer=4) == vscan_schedule(64, 8) == (96, ((4, 32),))
    assert average_tokens(tokens_per_layer(8, *vscan_schedule(64, 8, layer=5))) == 64
    for layer in (0, 8, -1):
        with pytest.raises(ValueError, match=f"layer: expected one of 1 to 7, got {layer}"):
            vscan_schedule(64, 8, layer)


@pytest.mark.parametrize(("average", "num_layers"), [(0.333, 28), (0.222, 36), (0.111, 64), (1 / 9, 28)])
def test_shares_enter_at_one_and_a_half_and_leave_at_half_of_the_average(average, num_layers):
    share, layers = vscan_shares(average, num_layers)
    assert share == pytest.approx(1.5 * average)
    assert layers == ((num_layers // 2, 1 / 3),)
    schedule = tokens_per_layer(num_layers, count(36000, share), layers)
    assert average_tokens(schedule) == pytest.approx(36000 * average, abs=1)
    assert schedule[-1] == schedule[0] // 3


@pytest.mark.parametrize("average", [0.0, -0.1, 2 / 3, 1.0, 1, 192, True, float("nan")])
def test_an_average_that_no_share_gives_is_refused(average):
    with pytest.raises(ValueError, match=r"average: expected a share \(float\) above 0 and below 2/3, got"):
        vscan_shares(average, 28)


def test_shares_of_an_odd_number_of_layers_are_refused():
    with pytest.raises(ValueError, match="num_layers: expected an even count, so that the average is met exactly"):
        vscan_shares(0.2, 27)
