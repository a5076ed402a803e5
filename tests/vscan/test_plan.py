"""What is worked out before a prompt runs: budgets checked against a model, averages spelled out, lengths of layers."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from helpers import pictures, prompt, tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st

import vscan
from vscan.config import ReductionConfig, count
from vscan.kept import Kept
from vscan.methods import METHODS, make_method
from vscan.methods.base import Method, Schedule
from vscan.methods.vscan import VScan
from vscan.plan import Fitted, Plan
from vscan.prompt import VisualPrompt

quick = settings(deadline=None, derandomize=True)
TEXT = SimpleNamespace(num_hidden_layers=8, max_position_embeddings=1000)


class Published(VScan):
    presets: ClassVar = {"a": Schedule(40, {2: 0.5, 4: 3}), "b": Schedule(layers={1: 7})}


class InDecoder(Method):
    """Reduces in the decoder, and says of no average how."""


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(METHODS, "published", Published)
    monkeypatch.setitem(METHODS, "in decoder", InDecoder)


def fitted(method="vscan", num_tokens=576, has_cls=True, num_layers=8, rank_with_rotary=True, **given) -> Fitted:
    text = SimpleNamespace(**{**vars(TEXT), "num_hidden_layers": num_layers})
    made = make_method(method, given.pop("fields", {}))
    config = ReductionConfig(method, **given)
    known = {"num_tokens": num_tokens, "num_vision_layers": 24, "text_config": text}
    return Fitted.of(config, made, **known, has_cls=has_cls, rank_with_rotary=rank_with_rotary)


# ---------------------------------------------------------------------------------------------------------- Fitted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": {8: 3}}, "layers: expected decoder layers 0 to 7, got 8"),
        (
            {"visual_tokens": 577},
            "visual_tokens: expected at most the 576 visual tokens of a view that arrive, got 577",
        ),
        (
            {"visual_tokens": 96, "layers": {2: 97}},
            "layers: layer 2: expected at most the 96 visual tokens of a view that arrive, got 97",
        ),
        ({"method": "fastv", "layers": {0: 3}}, "layers: expected decoder layers from 1 on, got 0"),
        (
            {"method": "fastv", "visual_tokens": 10},
            "visual_tokens: expected None, for 'fastv' reduces nothing after the vision encoder, got 10",
        ),
        ({"visual_tokens": 9, "group": "image"}, "group: expected 'view' or None for 'vscan', got 'image'"),
        (
            {"visual_tokens": 9, "frame_cls": "keep"},
            "frame_cls: expected None, for views of this model have no [CLS] token, got keep",
        ),
        (
            {"visual_tokens": 9, "frame_cls": True},
            "frame_cls: expected one of keep, drop, or None, got True",
        ),
        ({"average": 577}, "average: expected at most the 576 visual tokens of a view, got 577"),
        (
            {"average": 64, "num_tokens": None},
            "average: expected a share such as 0.111, for images vary in size, got 64",
        ),
        (
            {"method": "in decoder", "average": 64},
            "average: expected a method with a schedule of its own, got 'in decoder' without",
        ),
        ({"method": "published", "preset": "c"}, "preset: expected one of those of 'published' (a, b), got 'c'"),
        ({"preset": "a"}, "preset: expected one of those of 'vscan' (none), got 'a'"),
        ({"method": "fastv", "average": 100}, "average: not reachable (at least 144)"),
        ({"method": "fastv", "average": 0.2}, "average: not reachable (at least 0.25)"),
        (
            {"visual_tokens": 9, "fields": {"local_layer": 24}},
            "VScan: expected one of 24 vision layers, got 24",
        ),
    ],
)
def test_what_does_not_fit_a_model_is_refused(registered, given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        fitted(**given)
    assert str(caught.value) == message


def test_a_method_that_ranks_by_cls_is_refused_where_there_is_none():
    with pytest.raises(
        ValueError, match=r"^method 'hired': expected a vision encoder with a \[CLS\] token, got one without$"
    ):
        fitted("hired", visual_tokens=64, has_cls=False)


@pytest.mark.parametrize(
    ("given", "spelled_out"),
    [
        ({"average": 64}, {"visual_tokens": 96, "layers": {4: 32}}),
        ({"average": 128}, {"visual_tokens": 192, "layers": {4: 64}}),
        ({"method": "vispruner", "average": 64}, {"visual_tokens": 64}),
        ({"method": "random", "average": 0.25}, {"visual_tokens": 0.25}),
        ({"method": "fastv", "average": 192}, {"layers": {2: 64}}),
        ({"method": "pdrop", "preset": "published", "num_layers": 32}, {"layers": {8: 0.5, 16: 0.5, 24: 0.5}}),
        ({"method": "published", "preset": "a"}, {"visual_tokens": 40, "layers": {2: 0.5, 4: 3}}),
        ({"method": "published", "preset": "b"}, {"layers": {1: 7}}),
    ],
)
def test_an_average_or_a_preset_stands_for_budgets(registered, given, spelled_out):
    found = fitted(**given)
    expected = {**given, "average": None, "preset": None, **spelled_out}
    assert found == fitted(**expected)
    assert (found.visual_tokens, dict(found.layers)) == (
        spelled_out.get("visual_tokens"),
        spelled_out.get("layers", {}),
    )


def test_whether_anything_is_reduced_after_the_encoder():
    assert [fitted(visual_tokens=budget).reduces_views for budget in (None, 576, 1.0, 575, 0.5)] == [False] * 3 + [
        True
    ] * 2
    assert [fitted(visual_tokens=budget).num_kept for budget in (None, 576, 0.5)] == [576, 576, 288]
    free = [fitted(num_tokens=None, visual_tokens=budget) for budget in (None, 1.0, 0.5, 9)]
    assert [each.reduces_views for each in free] == [False, False, True, True]
    assert {each.num_kept for each in free} == {None}


@pytest.mark.parametrize(("positions", "compact"), [("auto", True), ("compact", True), ("original", False)])
def test_positions_are_the_method_s_unless_asked_for(positions, compact):
    assert fitted(positions=positions).compact_positions is compact
    assert fitted("fastv", positions=positions).compact_positions is (positions == "compact")


# ------------------------------------------------------------------------------------------------------------ Plan


@quick
@given(
    views=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    texts=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    visual_tokens=st.none() | st.integers(1, 20) | st.floats(0.05, 1),
    budgets=st.dictionaries(st.integers(0, 7), st.integers(0, 20) | st.floats(0.05, 1), max_size=3),
)
def test_a_plan_counts_stage_by_stage(views, texts, visual_tokens, budgets):
    kept = count(20, visual_tokens)
    valid = [20 * number + text for number, text in zip(views, texts, strict=False)]
    length = max(valid)
    visual = torch.zeros(len(views), length, dtype=torch.bool)
    given = VisualPrompt(
        visual, views, [20 * n for n in views], [kept * n for n in views], valid, visual if kept < 20 else None
    )
    layers = tuple(sorted(budgets.items()))
    plan = Plan.of(SimpleNamespace(layers=layers, num_layers=8, method=VScan()), given)
    left, found = [kept * number for number in views], []
    for layer in range(8):
        if layer in budgets:
            left = [count(n, budgets[layer], number) for n, number in zip(left, views, strict=True)]
        found.append(list(left))
    assert [stage.num_visual for stage in plan.of_layers] == found
    for stage in plan.of_layers:
        assert stage.num_valid == [n + text for n, text in zip(stage.num_visual, texts, strict=False)]
        assert stage.length == max(stage.num_valid)
    assert plan.length == length


def test_what_a_method_leaves_beyond_its_budget_is_counted():
    class Recycling(Method):
        def leaves(self, num, arriving):
            return num + (arriving - num) // 4

    given = VisualPrompt(torch.zeros(2, 30, dtype=torch.bool), [1, 1], [20, 20], [20, 20], [30, 25])
    plan = Plan.of(SimpleNamespace(layers=((1, 8), (3, 0.5), (5, 1.0)), num_layers=8, method=Recycling()), given)
    assert [stage.num_visual for stage in plan.stages] == [[20] * 2, [11] * 2, [6] * 2, [6] * 2]
    assert [stage.num for stage in plan.stages] == [None, [8] * 2, [5] * 2, None]
    assert [stage.length for stage in plan.stages] == [30, 21, 16, 16]


# ----------------------------------------------------------------------------------------------------- on a model


def test_an_average_gives_what_its_budgets_give_and_the_plan_says_so_beforehand():
    model = tiny_llava()
    ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, "image", 7]], 144)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 3)}
    found = []
    for budgets in ({"average": 16}, {"visual_tokens": 24, "layers": {3: 8}}):
        with vscan.reduce(model, local_layer=2, **budgets) as reduction, torch.no_grad():
            plan = reduction.plan(**inputs)
            with pytest.raises(RuntimeError, match="none has"):
                reduction.stats()  # planned, but not run
            logits = model(**inputs).logits
            found.append((logits, reduction.stats().rows))
            assert [stage.length for stage in plan.of_layers] == reduction.stats().cache_lengths
            for number, row in enumerate(reduction.stats().rows):
                assert [stage.num_visual[number] for stage in plan.of_layers] == row.tokens_per_layer
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert [row.average_tokens for row in found[0][1]] == [16, 32]


def test_a_call_without_pictures_has_no_plan():
    with (
        vscan.reduce(tiny_llava(), local_layer=2, visual_tokens=9) as reduction,
        pytest.raises(ValueError, match=r"^expected pixel_values to plan for, got none$"),
    ):
        reduction.plan(input_ids=torch.tensor([[1, 5]]))


class Half(Method):
    """Keeps the first half of what it is asked for."""

    def encode(self, views, num):
        slots = torch.arange(num).expand(len(views.features), -1)
        return Kept(slots, valid=slots < num // 2)


def test_a_method_that_keeps_fewer_than_asked_is_counted_by_what_it_keeps(monkeypatch):
    monkeypatch.setitem(METHODS, "half", Half)
    model = tiny_llava(num_layers=4, vision_layers=4, side=8)
    ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, 7]], 64)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}
    with vscan.reduce(model, "half", 20, {2: 5}) as reduction, torch.no_grad():
        model(**inputs)
        stats, plan = reduction.stats(), reduction.plan(**inputs)
    assert [row.stages for row in stats.rows] == [[[0, 10], [2, 5]]] * 2
    assert [row.kept[0] for row in stats.rows] == [list(range(10))] * 2
    assert stats.cache_lengths == [stage.length for stage in plan.of_layers] == [14, 14, 9, 9]


def test_the_rotary_embedding_in_the_ranking_is_the_method_s_or_the_model_s():
    assert not fitted(layers=((2, 0.5),), rank_with_rotary=False).rank_with_rotary
    assert fitted("fastv", layers=((2, 0.5),), rank_with_rotary=False).rank_with_rotary
    assert fitted(layers=((2, 0.5),)).rank_with_rotary
