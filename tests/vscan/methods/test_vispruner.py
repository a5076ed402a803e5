"""VisPruner equals the published selections, follows its rule where they have none, and meets every budget."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vscan.methods import method_class
from vscan.methods.base import Tower, Views
from vscan.methods.vispruner import VisPruner, select
from vscan.models.family import reduce_views

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "vispruner"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden data does not lie beside this repository")
no_deadline = settings(deadline=None, derandomize=True, max_examples=100)


def golden_records(name: str) -> list:
    path = GOLDEN / name
    if not path.is_file():
        return []
    records = json.loads(path.read_text())
    return records["cases"] if isinstance(records, dict) else records


def case_name(record: dict) -> str:
    return record.get("name") or f"t{record['T']}_r{100 * record['ratio']:g}"


def tower_output(num_views: int, num_tokens: int, width: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [V, N] and features [V, N, C] with a direction in common, as a tower's are."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(num_views, num_tokens, generator=generator).softmax(dim=-1)
    features = torch.randn(num_views, num_tokens, width, generator=generator)
    return attention, features + torch.randn(num_views, 1, width, generator=generator)


def views_of(attention: torch.Tensor, features: torch.Tensor, layer: int = -2, project=lambda tokens: tokens) -> Views:
    num_views, num_tokens, _ = features.shape
    return Views(torch.zeros(num_views, 3, 2, 2), features, {layer: attention}, (1, num_tokens), project)


def by_hand(attention: list, features: list, num: int, num_important: int) -> tuple[list[int], list[int]]:
    """The rule for one view, token by token; features of one length, so that dot products rank like cosines."""
    order = sorted(range(len(attention)), key=lambda token: (-attention[token], token))
    important, rest = order[:num_important], order[num_important:]
    num_diverse = num - num_important
    if num_diverse == 0:
        return important, []
    while len(rest) > num_diverse:
        a = [token for position, token in enumerate(rest) if position % 2 == 0]
        b = [token for position, token in enumerate(rest) if position % 2 == 1]
        largest = {i: max(sum(x * y for x, y in zip(features[i], features[j], strict=True)) for j in b) for i in a}
        a.sort(key=lambda token: -largest[token])  # stable: on ties the earlier position goes first
        rest = a[min(8, len(rest) - num_diverse, len(a)) :] + b
    return important, rest


@needs_golden
@pytest.mark.parametrize("record", golden_records("func_cases.json"), ids=case_name)
def test_select_equals_the_published_code_on_given_tower_outputs(record):
    name = f"func_t{record['T']}_r{round(100 * record['ratio'])}.safetensors"
    data = load_file(GOLDEN / name)
    attention = data["cls_attention_heads"].mean(dim=1)
    num, num_important = record["T"], int(record["T"] * record["ratio"])
    important, diverse = select(attention, data["vision_features"], num, num_important)
    assert record["strict"]
    assert torch.cat((important, diverse), dim=1).equal(data["selected_indices"])
    slots = encoded(VisPruner(record["ratio"]), views_of(attention, data["vision_features"]), num)[1]
    assert slots[0].equal(data["index_mask"][0].nonzero().squeeze(1))


@needs_golden
@pytest.mark.parametrize("record", golden_records("cases.json"), ids=case_name)
def test_select_equals_the_published_code_on_images(record):
    data = load_file(GOLDEN / record["file"])
    tower = load_file(GOLDEN / f"vision_img{record['image_index']}.safetensors")
    num, num_important = record["visual_token_num"], int(record["visual_token_num"] * record["important_ratio"])
    important, diverse = select(tower["cls_attention"], tower["vision_features"], num, num_important)
    assert num_important == record["important_num"]
    assert important.equal(data["important_indices"])
    assert diverse.shape == data["diverse_indices"].shape
    assert torch.cat((important, diverse), dim=1).unique().numel() == num
    if record["strict"]:
        assert torch.cat((important, diverse), dim=1).equal(data["selected_indices"])


@no_deadline
@given(data=st.data(), num_tokens=st.integers(2, 60), num_views=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_select_follows_the_rule_exactly_with_many_ties(data, num_tokens, num_views, seed):
    num = data.draw(st.integers(1, num_tokens))
    num_important = data.draw(st.integers(0, num))
    generator = torch.Generator().manual_seed(seed)
    # Signs in 16 dimensions, scaled by powers of two: cosines are multiples of 1/8, exact in fp32, and often equal.
    signs = torch.randint(0, 2, (num_views, num_tokens, 16), generator=generator) * 2 - 1
    features = signs * 2.0 ** torch.randint(-3, 4, (num_views, num_tokens, 1), generator=generator)
    attention = torch.randint(0, 10, (num_views, num_tokens), generator=generator).float()
    important, diverse = select(attention, features, num, num_important)
    for view in range(num_views):
        expected = by_hand(attention[view].tolist(), signs[view].tolist(), num, num_important)
        assert (important[view].tolist(), diverse[view].tolist()) == expected


@no_deadline
@given(data=st.data(), num_tokens=st.integers(2, 80), ratio=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_every_budget_and_ratio_gives_exactly_as_many_ascending_slots(data, num_tokens, ratio, seed):
    num = data.draw(st.integers(1, num_tokens - 1))
    attention, features = tower_output(2, num_tokens, 8, seed)
    values, slots = encoded(VisPruner(ratio), views_of(attention, features), num)
    assert slots.shape == (2, num)
    assert slots.dtype == torch.long
    assert (slots.diff(dim=1) > 0).all()
    assert slots.min() >= 0
    assert slots.max() < num_tokens
    assert values.equal(features.take_along_dim(slots.unsqueeze(-1), dim=1))


@pytest.mark.parametrize(
    ("num", "ratio"),
    [(66, 0.5), (100, 0.33), (63, 0.5), (10, 0.5), (9, 0.5), (2, 0.5), (1, 0.5), (575, 0.5), (65, 0.0)],
)
def test_odd_and_tiny_budgets_that_the_published_code_may_fail_on_are_met(num, ratio):
    slots = encoded(VisPruner(ratio), views_of(*tower_output(1, 576)), num)[1]
    assert slots.unique().numel() == num


def test_the_first_set_of_an_odd_round_has_one_more():
    # Attention order 0 1 2 3 4: a = 0 2 4, b = 1 3. Token 4 equals 3; with a = 1 3 it would have been 3 or 1 that goes.
    features = torch.eye(5).index_select(0, torch.tensor([0, 1, 2, 3, 3])).unsqueeze(0)
    attention = torch.tensor([[5.0, 4, 3, 2, 1]])
    assert select(attention, features, 4, 0)[1].tolist() == [[0, 2, 1, 3]]


def test_the_cosine_ignores_how_long_features_are():
    # a = 0 2, b = 1 3. Token 2 points where 3 does but is short; token 0 is long, and only half towards 1.
    features = torch.tensor([[[90.0, 90.0, 90.0], [1.0, 0, 0], [0, 0.1, 0], [0, 1.0, 0]]])
    assert select(torch.tensor([[4.0, 3, 2, 1]]), features, 3, 0)[1].tolist() == [[0, 1, 3]]


def test_a_batch_equals_its_views_alone():
    attention, features = tower_output(4, 576)
    batch = encoded(VisPruner(), views_of(attention, features), 64)
    for view in range(4):
        alone = encoded(VisPruner(), views_of(attention[view : view + 1], features[view : view + 1]), 64)
        assert batch[1][view].equal(alone[1][0])
        assert batch[0][view].equal(alone[0][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_fp32_and_keep_their_dtype(dtype):
    attention, features = tower_output(2, 144)
    features = features.to(dtype)
    values, slots = encoded(VisPruner(), views_of(attention, features), 31)
    assert values.dtype == dtype
    assert slots.equal(encoded(VisPruner(), views_of(attention, features), 31)[1])
    assert slots.equal(encoded(VisPruner(), views_of(attention, features.float()), 31)[1])


def test_ratio_one_is_the_top_of_the_attention_and_ratio_zero_is_not():
    attention, features = tower_output(2, 144)
    best = attention.topk(20).indices.sort(dim=1).values
    assert encoded(VisPruner(1.0), views_of(attention, features), 20)[1].equal(best)
    assert not encoded(VisPruner(0.0), views_of(attention, features), 20)[1].equal(best)


def test_the_number_of_important_tokens_is_floored_as_published():
    attention, features = tower_output(1, 144)
    slots = encoded(VisPruner(0.29), views_of(attention, features), 100)[1]  # 100 * 0.29 is 28.999999999999996
    assert slots.equal(torch.cat(select(attention, features, 100, 28), dim=1).sort(dim=1).values)
    assert not slots.equal(torch.cat(select(attention, features, 100, 29), dim=1).sort(dim=1).values)


def test_only_kept_tokens_are_projected():
    seen = []

    def project(tokens):
        seen.append(tuple(tokens.shape))
        return tokens[..., :3]

    fitted = SimpleNamespace(method=VisPruner(), group="view", visual_tokens=7)
    tokens, left, num_kept = reduce_views(fitted, views_of(*tower_output(2, 36), project=project), [1, 1])
    assert seen == [(2, 7, 48)]
    assert tokens.shape == (2, 36, 3)
    assert left.sum(dim=1).tolist() == num_kept == [7, 7]


def test_selection_reads_no_value_back():
    # A meta tensor has no values: anything that would wait for the device fails on it.
    important, diverse = select(torch.empty(2, 36, device="meta"), torch.empty(2, 36, 8, device="meta"), 9, 4)
    assert important.shape == (2, 4)
    assert diverse.shape == (2, 5)


def test_no_gradient_graph_is_recorded_by_the_selection():
    attention, features = tower_output(1, 36)
    features.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("a tensor was saved"), lambda x: x):
        select(attention, features, 9, 4)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=r"important_ratio: expected a number in \[0, 1\], got"):
        VisPruner(ratio)


def test_the_attention_layer_is_a_field():
    attention, features = tower_output(1, 36)
    assert VisPruner().needs.rows == (-2,)
    assert VisPruner(attention_layer=7).needs.rows == (7,)
    views = views_of(attention, features, layer=7)
    expected = encoded(VisPruner(), views_of(attention, features), 9)[1]
    assert encoded(VisPruner(attention_layer=7), views, 9)[1].equal(expected)
    with pytest.raises(ValueError, match="expected one of 4 vision layers, got 7"):
        VisPruner(attention_layer=7).check(Tower(4, 3, 36, 9))


def test_it_is_found_by_its_name():
    assert method_class("vispruner") is VisPruner
