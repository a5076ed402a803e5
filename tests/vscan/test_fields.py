"""Hyper-parameters as data: read from a file's source or a class alike, and values checked by their annotations."""

import re
from dataclasses import dataclass, field, make_dataclass
from typing import Literal, Optional

import numpy as np
import pytest
from helpers import tiny_llava

import vscan
from vscan.api import Reduction
from vscan.config import ReductionConfig, check_budget, check_layers
from vscan.fields import RESERVED, Field, fields_of
from vscan.methods import METHODS, make_method, method_class, method_fields
from vscan.methods.base import Method


@pytest.fixture(scope="module")
def model():
    return tiny_llava(vision_layers=8)


def described(fields) -> list[tuple]:
    """What is known of each; `Optional[...]` is how Python prints an annotation that a file spells `... | None`."""
    annotations = [each.annotation.replace("typing.", "") for each in fields]
    annotations = [re.sub(r"^Optional\[(.*)\]$", r"\1 | None", each) for each in annotations]
    return [
        (each.name, annotation, each.default, each.help, each.expected)
        for each, annotation in zip(fields, annotations, strict=True)
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_source_says_what_its_class_says(name):
    fields = described(fields_of(METHODS[name]))
    assert fields == described(fields_of(method_class(name)))
    assert all(help_text and expected for _, _, _, help_text, expected in fields)


def test_fields_of_a_class_without_a_source():
    fields = {"a": Optional[int], "b": int | None, "c": tuple[str, ...], "d": Literal[1, 2], "e": "float", "f": list}  # noqa: UP045
    made = make_dataclass("Made", [(name, kind, field(default=None)) for name, kind in fields.items()])
    expected = ["an int or None", "an int or None", "a tuple of strings", "one of 1, 2", "a number", None]
    assert [each.expected for each in fields_of(made)] == expected


def test_a_source_that_leaves_something_open_is_imported(tmp_path, monkeypatch):
    source = "from dataclasses import dataclass\nTWO = 2\n@dataclass\nclass Open:\n    number: int = TWO\n"
    (tmp_path / "open_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert described(fields_of("open_method:Open")) == [("number", "int", 2, "", "an int")]


def test_a_module_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(METHODS, "lost", "nowhere.lost:Lost")
    with pytest.raises(
        ValueError, match=r"^method 'lost': nowhere.lost:Lost: expected a module and its class, found no"
    ):
        method_fields("lost")


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_reduce_has_taken_are_refused(name, monkeypatch):
    monkeypatch.setitem(METHODS, "taken", make_dataclass("Taken", [(name, int, field(default=0))]))
    with pytest.raises(
        ValueError, match=f"^method 'taken': field '{name}': expected a name other than model, method, "
    ):
        make_method("taken", {})


def test_the_keywords_of_reduce_are_reserved():
    keywords = {"model", "method", "visual_tokens", "layers", "positions"}
    assert keywords <= set(RESERVED)
    assert set(vscan.api.apply.__annotations__) - {"return", "fields"} <= set(RESERVED)


# ---------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("int", 6, 6),
        ("int", np.int64(20), 20),
        ("int", np.uint8(20), 20),
        ("float", 1, 1.0),
        ("float", np.float32(0.5), 0.5),
        ("float", np.int64(2), 2.0),
        ("bool", True, True),
        ("bool", np.bool_(False), False),
        ("str", "yes", "yes"),
        ("str", np.str_("yes"), "yes"),
        ("int | None", None, None),
        ("int | None", np.int32(3), 3),
        ("Optional[float]", None, None),
        ("typing.Union[int, str]", "a", "a"),
        ("'int'", 3, 3),
        ("tuple[int, ...]", [1, np.int64(2)], (1, 2)),
        ("tuple[float, ...]", (), ()),
        ("Literal['a', 'b']", "b", "b"),
        ("Literal['a', 'b'] | None", None, None),
        ("Annotated[int, (1, None)]", np.int64(1), 1),
        ("Annotated[float, (0, 1)]", 1, 1.0),
        ("Annotated[int, (0, 5)] | None", None, None),
        ("dict", {1: 2}, {1: 2}),  # no flag, and the method's own affair
    ],
)
def test_a_value_becomes_a_plain_one_of_its_annotation(annotation, value, expected):
    checked = Field("window", annotation, None).check(value)
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("int", "6", "window: expected an int, got '6'"),
        ("int", 6.5, "window: expected an int, got 6.5"),
        ("int", 6.0, "window: expected an int, got 6.0"),
        ("int", True, "window: expected an int, got True"),
        ("int", np.bool_(True), "window: expected an int, got "),
        ("int", None, "window: expected an int, got None"),
        ("float", "0.5", "window: expected a number, got '0.5'"),
        ("float", False, "window: expected a number, got False"),
        pytest.param("float", 10**400, "window: expected a number, got 1000", id="too large"),
        ("bool", "no", "window: expected True or False, got 'no'"),
        ("bool", 0, "window: expected True or False, got 0"),
        ("str", 5, "window: expected a string, got 5"),
        ("float | None", "x", "window: expected a number or None, got 'x'"),
        ("tuple[int, ...]", 5, "window: expected a tuple of ints, got 5"),
        ("tuple[int, ...]", (5, "x"), "window: expected a tuple of ints, got (5, 'x')"),
        ("Literal['a', 'b']", "c", "window: expected one of 'a', 'b', got 'c'"),
        ("Literal[1]", True, "window: expected 1, got True"),
        ("Annotated[int, (1, None)]", 0, "window: expected an int of at least 1, got 0"),
        ("Annotated[int, (1, 3)]", 4, "window: expected an int in [1, 3], got 4"),
        ("typing.Annotated[float, (0, 1)]", float("nan"), "window: expected a number in [0, 1], got nan"),
        ("Annotated[float, (0, 1)] | None", -0.1, "window: expected a number in [0, 1] or None, got -0.1"),
    ],
)
def test_another_value_is_refused_in_words(annotation, value, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Field("window", annotation, None).check(value)


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("vscan", {"window": "6"}, "window: expected an int of at least 1, got '6'"),
        ("vscan", {"window": 0}, "window: expected an int of at least 1, got 0"),
        ("vscan", {"local_layer": 1.5}, "local_layer: expected an int, got 1.5"),
        ("vscan", {"merge": "no"}, "merge: expected True or False, got 'no'"),
        ("vscan", {"global_share": "half"}, "global_share: expected a number in [0, 1], got 'half'"),
        ("vispruner", {"attention_layer": -2.0}, "attention_layer: expected an int, got -2.0"),
        ("fastervlm", {"important_ratio": None}, "important_ratio: expected a number in [0, 1], got None"),
        ("random", {"seed": True}, "seed: expected an int in [0, 9223372036854775807], got True"),
        ("vscan", {"windows": 6}, "method 'vscan': expected hyper-parameters among ['capped', "),
        ("downsample", {"window": 6}, "method 'downsample': expected hyper-parameters among [], got ['window']"),
    ],
)
@pytest.mark.parametrize("of_checkpoint", [False, True], ids=["asked for", "of a checkpoint"])
def test_a_reduction_refuses_it_wherever_it_comes_from(model, method, fields, message, of_checkpoint, monkeypatch):
    config = ReductionConfig(method, 8, fields={} if of_checkpoint else fields)
    monkeypatch.setattr(model.config, "reduction", {method: fields if of_checkpoint else {}}, raising=False)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Reduction(model, config)


def test_numbers_of_numpy_are_hyper_parameters(model):
    method = Reduction(model, ReductionConfig("vscan", 8, fields={"window": np.int64(4), "global_share": 1})).method
    assert (method.window, method.global_share) == (4, 1.0)
    assert (type(method.window), type(method.global_share)) == (int, float)


def test_a_hyper_parameter_without_a_default_is_asked_for(monkeypatch):
    @dataclass(frozen=True)
    class Needy(Method):
        share: float

    monkeypatch.setitem(METHODS, "needy", Needy)
    assert make_method("needy", {"share": 1}).share == 1.0
    with pytest.raises(ValueError, match=r"^method 'needy': expected a value of share, got none$"):
        make_method("needy", {})


def test_numbers_of_numpy_are_budgets_and_layers():
    config = ReductionConfig("vscan", np.int64(20), {np.int64(3): np.int32(5), 4: np.float32(0.5)})
    assert config == ReductionConfig("vscan", 20, {3: 5, 4: 0.5})
    assert [type(value) for value in (config.visual_tokens, *config.layers[0], config.layers[1][1])] == [int] * 3 + [
        float
    ]
    for refused in (np.bool_(True), np.array([3, 4]), np.str_("3")):
        with pytest.raises(ValueError, match=r"^budget: expected a count \(int\) or a share \(float\), got "):
            check_budget(refused, "budget")
    with pytest.raises(ValueError, match=r"^layers: expected a decoder layer of 0 or more, got "):
        check_layers([(np.float64(3.0), 5)])


def test_a_method_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match=r"^method: expected one of vscan, .*, got \['vscan'\]$"):
        ReductionConfig(["vscan"])
