"""Budgets, layers and lists: what is kept, what is refused and in which words, and that none of it needs torch."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.config import POSITIONS, ReductionConfig, check_budget, check_layers, count
from vscan.eval.arguments import config_of_lists, parse_list
from vscan.methods import METHODS

quick = settings(deadline=None, derandomize=True)
shares = st.floats(0, 1, exclude_min=True)
budgets = st.integers(1, 5000) | shares
stages = st.dictionaries(st.integers(0, 80), st.integers(0, 5000) | shares, max_size=4)


def refusal(call, *args) -> str:
    """What the ValueError says."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - callers compare the whole message
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    "module",
    [
        "vscan",
        "vscan.config",
        "vscan.flops",
        "vscan.methods",
        "vscan.eval",
        "vscan.eval.arguments",
        "vscan.eval.questions",
        "vscan.eval.records",
        "vscan.eval.runner",
    ],
)
def test_a_module_loads_without_torch(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_configuration_is_made_and_refused_without_torch():
    code = """
import sys
from vscan import ReductionConfig
from vscan.eval.arguments import config_of_lists
print(config_of_lists(96, [16], [32], method="vispruner", fields={"important_ratio": 0.5}).to_dict())
try:
    ReductionConfig(method="nothing")
except ValueError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "{'method': 'vispruner', 'visual_tokens': 96, 'layers': [[16, 32]], 'positions': 'auto', "
        "'important_ratio': 0.5}",
        f"method: expected one of {', '.join(METHODS)}, got 'nothing'",
        "False",
    ]


# ---------------------------------------------------------------------------------------------------------- count


@pytest.mark.parametrize(
    ("num_tokens", "budget", "num_views", "kept"),
    [
        (576, None, 1, 576),
        (0, None, 3, 0),
        (576, 96, 1, 96),
        (576, 576, 1, 576),
        (576, 577, 1, 576),
        (576, 1, 1, 1),
        (576, 1.0, 1, 576),
        (576, 0, 1, 0),
        (0, 96, 1, 0),
        (0, 0.5, 1, 0),
        (576, 0.167, 1, 96),
        (576, 0.5, 1, 288),
        (575, 0.5, 1, 287),
        (100, 0.29, 1, 28),  # 0.29 * 100 is 28.999999999999996: floored as published
        (3, 0.001, 1, 1),
        (480, 32, 5, 160),  # 5 crops of 96 -> 5 x 32
        (457, 96, 5, 457),
        (480, 0.5, 5, 240),  # a share is a share of all that arrive, however many views
        (480, None, 5, 480),
        (480, 0, 5, 0),
    ],
)
def test_the_count_that_a_budget_keeps(num_tokens, budget, num_views, kept):
    assert count(num_tokens, budget, num_views) == kept


@quick
@given(num_tokens=st.integers(0, 5000), budget=st.integers(0, 5000), num_views=st.integers(0, 10))
def test_an_int_is_a_count_per_view_and_never_more_than_there_are(num_tokens, budget, num_views):
    kept = count(num_tokens, budget, num_views)
    assert kept == (num_views * budget if num_views * budget <= num_tokens else num_tokens)
    assert type(kept) is int


@quick
@given(num_tokens=st.integers(1, 5000), share=shares, num_views=st.integers(1, 10))
def test_a_float_is_a_share_floored_and_at_least_one(num_tokens, share, num_views):
    kept = count(num_tokens, share, num_views)
    assert type(kept) is int
    assert 1 <= kept <= num_tokens
    assert kept <= max(1, share * num_tokens) < kept + 1


@quick
@given(num_tokens=st.integers(0, 5000), one=shares, other=shares)
def test_a_larger_share_never_keeps_less(num_tokens, one, other):
    assert count(num_tokens, min(one, other)) <= count(num_tokens, max(one, other))


# ------------------------------------------------------------------------------------------- budgets and layers


@quick
@given(budgets)
def test_a_budget_is_returned_as_it_is(budget):
    checked = check_budget(budget, "visual_tokens")
    assert checked == budget
    assert type(checked) is type(budget)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("96", "visual_tokens: expected a count (int) or a share (float), got '96'"),
        (None, "visual_tokens: expected a count (int) or a share (float), got None"),
        (True, "visual_tokens: expected a count (int) or a share (float), got True"),
        ([96], "visual_tokens: expected a count (int) or a share (float), got [96]"),
        (0, "visual_tokens: expected a count of at least 1, got 0"),
        (-3, "visual_tokens: expected a count of at least 1, got -3"),
        (0.0, "visual_tokens: expected a share in (0, 1], got 0.0; a count is written without a point"),
        (-0.5, "visual_tokens: expected a share in (0, 1], got -0.5; a count is written without a point"),
        (96.0, "visual_tokens: expected a share in (0, 1], got 96.0; a count is written without a point"),
        (float("nan"), "visual_tokens: expected a share in (0, 1], got nan; a count is written without a point"),
        (float("inf"), "visual_tokens: expected a share in (0, 1], got inf; a count is written without a point"),
    ],
)
def test_what_is_no_budget_is_refused(budget, message):
    assert refusal(check_budget, budget, "visual_tokens") == message


def test_the_least_count_is_the_callers():
    assert check_budget(0, "budget", least=0) == 0
    assert refusal(check_budget, -1, "budget", 0) == "budget: expected a count of at least 0, got -1"
    assert refusal(check_budget, 1, "budget", 2) == "budget: expected a count of at least 2, got 1"


@pytest.mark.parametrize(
    ("layers", "stages"),
    [
        (None, ()),
        ((), ()),
        ([], ()),
        ({}, ()),
        ({16: 32}, ((16, 32),)),
        ([(16, 32)], ((16, 32),)),
        ([[16, 32]], ((16, 32),)),
        ({24: 0.5, 8: 96, 16: 1.0}, ((8, 96), (16, 1.0), (24, 0.5))),
        (((0, 0), (1, 0)), ((0, 0), (1, 0))),
        (zip((8, 16), (96, 32), strict=True), ((8, 96), (16, 32))),
        (MappingProxyType({2: 3}), ((2, 3),)),
    ],
)
def test_layers_become_ascending_pairs(layers, stages):
    assert check_layers(layers) == stages


@quick
@given(stages)
def test_a_mapping_may_name_its_layers_in_any_order(stages):
    checked = check_layers(stages)
    assert dict(checked) == stages
    assert [layer for layer, _ in checked] == sorted(stages)
    assert check_layers(checked) == checked


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([16], "layers: expected pairs of layer and budget such as {16: 32}, got 16"),
        ([(16,)], "layers: expected pairs of layer and budget such as {16: 32}, got (16,)"),
        ([(16, 32, 8)], "layers: expected pairs of layer and budget such as {16: 32}, got (16, 32, 8)"),
        ({-1: 32}, "layers: expected a decoder layer of 0 or more, got -1"),
        ({"16": 32}, "layers: expected a decoder layer of 0 or more, got '16'"),
        ({16.0: 32}, "layers: expected a decoder layer of 0 or more, got 16.0"),
        ([(True, 32)], "layers: expected a decoder layer of 0 or more, got True"),
        ([(16, 32), (8, 16)], "layers: expected ascending decoder layers, got 8 after 16"),
        ([(16, 32), (16, 8)], "layers: expected ascending decoder layers, got 16 after 16"),
        ({16: -1}, "layers: budget of layer 16: expected a count of at least 0, got -1"),
        ({16: None}, "layers: budget of layer 16: expected a count (int) or a share (float), got None"),
        (
            {8: 3, 16: 0.0},
            "layers: budget of layer 16: expected a share in (0, 1], got 0.0; a count is written without a point",
        ),
    ],
)
def test_what_are_no_layers_is_refused(layers, message):
    assert refusal(check_layers, layers) == message


@pytest.mark.parametrize("layers", [16, 0.5, {16: 32, "24": 16}], ids=["a layer", "a share", "names of two kinds"])
def test_what_is_no_collection_of_layers_is_refused_as_well(layers):
    assert refusal(check_layers, layers).startswith("layers: expected ")


# ---------------------------------------------------------------------------------------------------- parse_list


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("None", None),
        ("[]", []),
        ("[16]", [16]),
        ("[8,16]", [8, 16]),
        (" [8, 16]", [8, 16]),
        ("(8, 16)", [8, 16]),
        ("8, 16", [8, 16]),
        ("[0.5, 32]", [0.5, 32]),
    ],
)
def test_a_list_on_the_command_line(text, value):
    parsed = parse_list(text, "--layer_list")
    assert parsed == value
    assert type(parsed) is type(value)


@quick
@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_a_printed_list_is_read_back(values):
    assert parse_list(repr(values), "--layer_list") == values


@pytest.mark.parametrize(
    "text", ["16", "0.5", "sixteen", "", "[16", "True", "{16: 32}", "'[16]'", "[f(16)]", "__import__('os').getcwd()"]
)
def test_what_is_no_list_is_refused(text):
    message = f"--layer_list: expected a list such as '[16]', or None, got {text!r}"
    assert refusal(parse_list, text, "--layer_list") == message


def test_a_literal_that_python_cannot_build_is_refused_as_well():
    message = "--layer_list: expected a list such as '[16]', or None, got '{[]: 1}'"
    assert refusal(parse_list, "{[]: 1}", "--layer_list") == message


# ----------------------------------------------------------------------------------------------- ReductionConfig


@pytest.mark.parametrize(
    ("visual_tokens", "layer_list", "image_token_list", "expected"),
    [
        (96, [16], [32], (96, ((16, 32),))),
        (96, None, None, (96, ())),
        (96, [], [], (96, ())),
        (96, [], None, (96, ())),
        (0.167, [8, 16, 24], [64, 0.5, 0], (0.167, ((8, 64), (16, 0.5), (24, 0)))),
        (None, [16], [32], (None, ((16, 32),))),
        (None, None, None, None),
        (None, [], [], None),
        (None, [], None, None),
        (None, None, [], None),
    ],
)
def test_the_published_flags(visual_tokens, layer_list, image_token_list, expected):
    config = config_of_lists(visual_tokens, layer_list, image_token_list)
    if expected is None:
        assert config is None
    else:
        assert (config.visual_tokens, config.layers) == expected
        assert (config.method, config.positions, dict(config.fields)) == ("vscan", "auto", {})


def test_the_published_flags_as_they_are_typed():
    layer_list, image_token_list = (parse_list(text, "--list") for text in ("[16]", "[32]"))
    config = config_of_lists(96, layer_list, image_token_list)
    assert config == ReductionConfig("vscan", 96, {16: 32})


def test_further_settings_go_along_with_the_published_flags():
    config = config_of_lists(64, None, None, method="vispruner", positions="original", fields={"important_ratio": 0.75})
    assert config == ReductionConfig("vispruner", 64, (), "original", {"important_ratio": 0.75})


@pytest.mark.parametrize(
    ("visual_tokens", "layer_list", "image_token_list", "message"),
    [
        (96, [16], [32, 8], "got 1 layers [16] and 2 budgets [32, 8]"),
        (96, [16], None, "got 1 layers [16] and 0 budgets []"),
        (None, None, [32], "got 0 layers [] and 1 budgets [32]"),
    ],
)
def test_lists_of_unequal_length_are_refused(visual_tokens, layer_list, image_token_list, message):
    said = refusal(config_of_lists, visual_tokens, layer_list, image_token_list)
    assert said == f"layer_list and image_token_list: expected one budget per layer, {message}"


def test_published_lists_are_not_reordered():
    said = refusal(config_of_lists, 96, [16, 8], [32, 64])
    assert said == "layers: expected ascending decoder layers, got 8 after 16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fast"}, f"method: expected one of {', '.join(METHODS)}, got 'fast'"),
        ({"positions": "new"}, "positions: expected one of auto, compact, original, got 'new'"),
        ({"visual_tokens": 0}, "visual_tokens: expected a count of at least 1, got 0"),
        ({"layers": {3: "x"}}, "layers: budget of layer 3: expected a count (int) or a share (float), got 'x'"),
    ],
)
def test_what_is_no_configuration_is_refused(arguments, message):
    assert refusal(lambda: ReductionConfig(**arguments)) == message


configs = st.builds(
    ReductionConfig,
    method=st.sampled_from(sorted(METHODS)),
    visual_tokens=st.none() | budgets,
    layers=stages,
    positions=st.sampled_from(POSITIONS),
    fields=st.dictionaries(st.sampled_from(["window", "global_share", "merge"]), st.booleans() | budgets),
)


@quick
@given(configs)
def test_the_record_of_a_configuration_is_plain_json_and_says_all_of_it(config):
    record = config.to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    method, visual_tokens, layers, positions = (
        record.pop(key) for key in ("method", "visual_tokens", "layers", "positions")
    )
    assert ReductionConfig(method, visual_tokens, layers, positions, record) == config


def test_the_record_of_a_configuration_spelled_out():
    config = ReductionConfig("vscan", 96, {24: 0.5, 16: 32}, "compact", {"window": 4, "merge": False})
    assert config.to_dict() == {
        "method": "vscan",
        "visual_tokens": 96,
        "layers": [[16, 32], [24, 0.5]],
        "positions": "compact",
        "window": 4,
        "merge": False,
    }


def test_a_configuration_does_not_change():
    layers, fields = [[16, 32]], {"window": 4}
    config = ReductionConfig(visual_tokens=96, layers=layers, fields=fields)
    record = config.to_dict()
    layers[0][1], fields["window"] = 1, 2
    layers.append([20, 3])
    record["layers"][0][1] = 5
    with pytest.raises(FrozenInstanceError):
        config.visual_tokens = 3
    assert pickle.loads(pickle.dumps(config)) == config
    assert config == ReductionConfig("vscan", 96, {16: 32}, "auto", {"window": 4})
    assert replace(config, visual_tokens=3) == ReductionConfig("vscan", 3, {16: 32}, "auto", {"window": 4})


# ------------------------------------------------------------------------------------------- average and preset

ONE_OF_THREE = "expected one of average, preset, or visual_tokens and layers, got "


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({"average": 64, "preset": "a"}, "average and preset"),
        ({"average": 64, "visual_tokens": 96}, "average and visual_tokens and layers"),
        ({"preset": "a", "layers": {2: 32}}, "preset and visual_tokens and layers"),
        ({"average": 0.5, "preset": "a", "layers": {2: 32}}, "average and preset and visual_tokens and layers"),
    ],
)
def test_budgets_are_given_in_one_of_three_ways(given, got):
    assert refusal(lambda: ReductionConfig("vscan", **given)) == ONE_OF_THREE + got


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"average": 0}, "average: expected a count of at least 1, got 0"),
        ({"average": 64.0}, "average: expected a share in (0, 1], got 64.0; a count is written without a point"),
        ({"average": "64"}, "average: expected a count (int) or a share (float), got '64'"),
        ({"group": "crop"}, "group: expected one of view, image, or None, got 'crop'"),
    ],
)
def test_an_average_and_a_group_that_are_none_are_refused(given, message):
    assert refusal(lambda: ReductionConfig(**given)) == message


@pytest.mark.parametrize(
    "given",
    [{"average": 64}, {"average": 0.25}, {"preset": "a"}, {"average": 64, "group": "view"}, {"frame_cls": "drop"}],
)
def test_what_came_later_is_recorded_where_it_is_given(given):
    config = ReductionConfig("vscan", **given)
    old = {"method": "vscan", "visual_tokens": None, "layers": [], "positions": "auto"}
    assert config.to_dict() == {**old, **given}
    assert ReductionConfig(**config.to_dict()) == config
    assert ReductionConfig("vscan").to_dict() == old
