"""SparseVLM against a slow reference in lists, written from the description; its schedules by counting."""

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from contracts.families import FAMILIES, ROWS
from helpers import close, tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st

import vscan
from vscan.compat import attention_weights, cache_of, text_model_of
from vscan.config import Unreachable
from vscan.methods import METHODS
from vscan.methods.base import Kept, Stage
from vscan.methods.sparsevlm import SparseVLM
from vscan.prompt import VisualPrompt

sys.path.append(str(Path(__file__).parent))
from rivals.common import stage_of

quick = settings(deadline=None, derandomize=True)
every_release = pytest.mark.parametrize("release", ["1.5", "2.0"])


# ---------------------------------------------------------------------------------------------- the slow reference


def raters_by_hand(stage: Stage, item: int) -> list[int]:
    """The columns that ask at a stage."""
    entry = stage.entry
    visual = entry.visual[item].nonzero()[:, 0].tolist()
    later = [c for c in entry.text[item].nonzero()[:, 0].tolist() if c > max(visual)]
    if not later:
        return [int(stage.last[item])]
    pictures, texts = entry.hidden[item, visual].double(), entry.hidden[item, later].double()
    shares = (pictures @ texts.T).softmax(dim=-1).mean(dim=0).tolist()
    asking = [i for i, share in enumerate(shares) if share > sum(shares) / len(shares)] or range(len(later))
    behind = stage.text[item].nonzero()[:, 0].tolist()[-len(later) :]  # text stays
    return [behind[i] for i in asking]


def scores_by_hand(stage: Stage, item: int, release: str) -> list[float]:
    """Of the visual tokens in their order, from the full attention of the layer before."""
    hidden = stage.inputs[-2]
    batch, length = hidden.shape[:2]
    seen = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1)
    seen = seen if stage.allowed is None else seen & stage.allowed.unsqueeze(1)
    mask = torch.zeros(batch, 1, length, length).masked_fill(~seen.unsqueeze(1), torch.finfo(torch.float32).min)
    ones = torch.ones(1, length, stage.layers[-2].self_attn.head_dim)
    rotary = (ones, 0 * ones) if stage.rotary is None else stage.rotary
    weights = attention_weights(stage.layers[-2], hidden, mask, rotary)[item].double()  # H S S
    asking, visual = raters_by_hand(stage, item), stage.visual[item].nonzero()[:, 0].tolist()
    heads = weights[:, asking][:, :, visual]  # H R V
    if release == "2.0":
        size, places = ones.shape[-1], stage.positions.expand(batch, -1)[item].double()
        frequencies = 10000.0 ** (-torch.arange(0, size, 2).double() / size)
        apart = places[asking].unsqueeze(1) - places[visual]
        heads = heads / ((apart.unsqueeze(-1) * frequencies).cos().sum(-1) * 2 / math.sqrt(size))
        heads = heads[sorted(range(len(heads)), key=lambda head: -heads[head].sum())[:14]]
    return heads.mean(dim=0).mean(dim=0).tolist()


def clusters_by_hand(points: torch.Tensor, num: int) -> tuple[list[int], list[int]]:
    """Centres, and the cluster of every point."""
    count, scale = len(points), math.sqrt(points.shape[1])
    apart = [[math.dist(a, b) / scale for b in points.tolist()] for a in points.tolist()]
    rho = [math.exp(-sum(d * d for d in sorted(row)[:num]) / num) for row in apart]
    delta = []
    for i in range(count):
        denser = [apart[i][j] for j in range(count) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        delta.append(min(denser, default=max(map(max, apart))))
    centres = sorted(range(count), key=lambda i: -delta[i] * rho[i])[:num]
    nearest = [min(range(num), key=lambda k: apart[i][centres[k]]) for i in range(count)]
    return centres, [centres.index(i) if i in centres else nearest[i] for i in range(count)]


def by_hand(stage: Stage, item: int, release: str) -> tuple[list[tuple[int, torch.Tensor]], dict[int, int]]:
    """(column, value) of what goes on, in order, and {column: place that it went into}."""
    columns, num = stage.visual[item].nonzero()[:, 0].tolist(), stage.num[item]
    if num == len(columns):
        ranked = list(range(num))
    else:
        scores = scores_by_hand(stage, item, release)
        ranked = sorted(range(len(columns)), key=lambda i: -scores[i])
    kept = [columns[i] for i in sorted(ranked[:num])]
    found, into = [(c, stage.hidden[item, c]) for c in kept], {c: place for place, c in enumerate(kept)}
    dropped = len(columns) - num
    if dropped == 0 or release == "2.0":
        return found, into
    taken = [columns[i] for i in ranked[num:]][: int(dropped * 0.3) + 1]
    centres, clusters = clusters_by_hand(stage.hidden[item, taken], int(len(taken) / 10) + 1)
    for number, centre in enumerate(centres):
        members = [c for c, cluster in zip(taken, clusters, strict=True) if cluster == number]
        found.append((taken[centre], stage.hidden[item, members].sum(dim=0) / (len(members) + 1e-6)))
        into |= dict.fromkeys(members, num + number)
    return found, into


def equals_by_hand(stage: Stage, kept: Kept, release: str) -> None:
    values = stage.hidden.take_along_dim(kept.slots.unsqueeze(-1), dim=1) if kept.values is None else kept.values
    valid = torch.ones_like(kept.slots, dtype=torch.bool) if kept.valid is None else kept.valid
    for item in range(len(stage.num)):
        expected, into = by_hand(stage, item, release)
        assert kept.slots[item][valid[item]].tolist() == [column for column, _ in expected]
        assert len(expected) == SparseVLM(release).leaves(stage.num[item], stage.arriving[item])
        if expected:
            close(values[item][valid[item]], torch.stack([value for _, value in expected]), 1e-5)
        if release == "1.5":
            place = valid[item].cumsum(0) - 1
            gone = {column: int(place[at]) for column, at in enumerate(kept.into[item].tolist()) if at >= 0}
            assert gone == into


# ------------------------------------------------------------------------------------------------------- one stage


@pytest.fixture(scope="module")
def text_model():
    return tiny_llava(heads=16, kv_heads=8).model.language_model  # more heads than count in release 2.0


def some_stage(text_model, rows: list[str], num: list[int], seed: int = 0) -> Stage:
    """A stage before layer 2 of prompts in letters: V is a visual token, anything else text; padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    length = max(map(len, rows))
    visual = torch.tensor([[letter == "V" for letter in row.ljust(length)] for row in rows])
    valid = torch.tensor([[letter != " " for letter in row.ljust(length)] for row in rows])
    hidden, before = torch.randn(2, len(rows), length, 32, generator=generator)
    hidden, before = hidden.masked_fill(~valid.unsqueeze(-1), 7.0), before.masked_fill(~valid.unsqueeze(-1), -7.0)
    with torch.no_grad():
        return stage_of(text_model, 2, hidden, visual, num, valid, before)


def item_of(stage: Stage, item: int, length: int) -> Stage:
    """One item of a stage without its padding."""
    part = slice(item, item + 1)
    entry = stage.entry
    num_text = int(entry.text[item].sum())
    return Stage(
        layer=stage.layer,
        hidden=stage.hidden[part, :length],
        visual=stage.visual[part, :length],
        text=stage.text[part, :length],
        num=stage.num[part],
        arriving=stage.arriving[part],
        entry=type(entry)(*(tensor[part, :length] for tensor in entry[:3]), num_text),
        memory={},
        positions=stage.positions[:, :length],
        rotary=tuple(each[:, :length] for each in stage.rotary),
        final_norm=stage.final_norm,
        last=stage.last[part],
        allowed=None,
        layers=stage.layers,
        inputs=[each[part, :length] for each in stage.inputs],
    )


letters = st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 3), st.integers(0, 20), st.integers(0, 6))


@every_release
@settings(quick, max_examples=15)
@given(data=st.data(), parts=st.lists(letters, min_size=1, max_size=4), seed=st.integers(0, 10**6))
@torch.no_grad()
def test_unequal_items_equal_the_slow_reference_and_themselves_alone(text_model, release, data, parts, seed):
    rows = ["t" + "t" * a + "V" * b + "t" * c + "V" * d + "t" * e for a, b, c, d, e in [(0, 5, 0, 0, 1), *parts]]
    num = [2, *(data.draw(st.integers(0, row.count("V"))) for row in rows[1:])]
    stage, method = some_stage(text_model, rows, num, seed), SparseVLM(release)
    kept = method.prune(stage)
    equals_by_hand(stage, kept, release)
    for item, row in enumerate(rows):
        if num[item] < row.count("V"):
            alone = method.prune(item_of(stage, item, len(row)))
            ours = slice(None) if kept.valid is None else kept.valid[item]
            assert torch.equal(kept.slots[item][ours], alone.slots[0])
            if release == "1.5":
                close(kept.values[item][ours], alone.values[0], 1e-6)


@torch.no_grad()
def test_all_later_text_rates_where_none_of_it_is_above_the_mean(text_model):
    stage = some_stage(text_model, ["tttVVVVVVVVtt"], [3])
    stage.entry.hidden[0, 12] = stage.entry.hidden[0, 11]
    assert raters_by_hand(stage, 0) == [11, 12]
    method = SparseVLM()
    equals_by_hand(stage, method.prune(stage), "1.5")
    scores = method.ratings(stage, stage.memory["raters"])[stage.visual]
    close(scores, torch.tensor(scores_by_hand(stage, 0, "1.5")), 1e-5)


@torch.no_grad()
def test_scores_of_release_2_0_are_attention_divided_by_the_weight_of_the_distance(text_model):
    stage = some_stage(text_model, ["tttVVVVVVVVtttt"], [3])
    method = SparseVLM("2.0")
    method.prune(stage)
    scores = method.ratings(stage, stage.memory["raters"])[stage.visual]
    close(scores, torch.tensor(scores_by_hand(stage, 0, "2.0")), 1e-4)


@every_release
@torch.no_grad()
def test_no_more_rows_than_tokens_of_text_are_computed(text_model, release):
    rows, asked = ["ttt" + "V" * 90 + "t" * 9, "t" + "V" * 30 + "t"], []

    def watched(stage: Stage, queries=None, back: int = 0):
        asked.append((tuple(queries.shape), back))
        return made(stage, queries, back)

    stage, made = some_stage(text_model, rows, [10, 10]), Stage.rows
    with patch.object(Stage, "rows", watched):
        SparseVLM(release).prune(stage)
    assert asked == [((2, 12), 1)]


@torch.no_grad()
def test_raters_are_found_once(text_model):
    stage = some_stage(text_model, ["tt" + "V" * 20 + "tttt"], [5])
    first = SparseVLM().prune(stage)
    stage.entry.hidden.zero_()  # is not looked at again
    assert torch.equal(SparseVLM().prune(stage).slots, first.slots)


# ---------------------------------------------------------------------------------------------------- whole prompts


def generate(model, inputs: dict) -> torch.Tensor:
    """The logits of five greedy tokens, [5, B, vocabulary]."""
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    ids = inputs.pop("input_ids")
    return torch.stack(model.generate(ids, **inputs, **options).logits)


def laid_out(stage: Stage, item: int, release: str) -> list[torch.Tensor]:
    """An item's columns behind a stage: a token that would go back behind the one before it follows that one."""
    tokens, at = by_hand(stage, item, release)[0], 0
    placed = [(column, 0, stage.hidden[item, column]) for column in stage.text[item].nonzero()[:, 0].tolist()]
    for order, (column, value) in enumerate(tokens, start=1):
        at = max(at, column)
        placed.append((at, order, value))
    return [value for *_, value in sorted(placed, key=lambda each: each[:2])]


@pytest.mark.parametrize(("family", "release"), [(name, "1.5") for name in FAMILIES] + [("llava", "2.0")])
@torch.no_grad()
def test_a_stage_of_every_model_is_the_slow_reference(family, release):
    family, stages, inputs = FAMILIES[family], [], {}

    class Watched(SparseVLM):
        def prune(self, stage: Stage) -> Kept:
            stages.append(stage)
            return super().prune(stage)

    def before(layer, args):
        inputs.setdefault(layer.self_attn.layer_idx, args[0])

    model, rows = family.model, ROWS["unequal"]
    with ExitStack() as undo:
        for layer in text_model_of(model).layers:
            undo.callback(layer.register_forward_pre_hook(before).remove)
        undo.enter_context(patch.dict(METHODS, {"sparsevlm": Watched}))
        reduction = undo.enter_context(vscan.reduce(model, "sparsevlm", layers={1: 0.5, 3: 4}, release=release))
        generate(model, family.inputs(model, rows))
        left = [reduction.kept(number) >= 0 for number in (1, 2)]
    assert [stage.layer for stage in stages] == [1, 3]
    for stage, valid in zip(stages, left, strict=True):
        for item in range(len(rows)):
            expected = torch.stack(laid_out(stage, item, release))
            assert int(valid[item].sum()) == len(expected)
            close(inputs[stage.layer][item][valid[item]], expected, 1e-5)


@pytest.mark.parametrize(
    ("family", "release"), [(name, "1.5") for name in FAMILIES] + [("llava", "2.0"), ("qwen2_5_vl", "2.0")]
)
@torch.no_grad()
def test_a_batch_equals_its_prompts_alone(family, release):
    family = FAMILIES[family]
    model, rows = family.model, ROWS["unequal"]
    with vscan.reduce(model, "sparsevlm", layers={1: 0.5, 3: 4}, release=release):
        together = generate(model, family.inputs(model, rows))
        for item, row in enumerate(rows):
            alone = generate(model, family.inputs(model, [row]))
            close(together[:, item], alone[:, 0], 5e-5)


@pytest.mark.parametrize("num_images", [[1], [2, 0, 1]])
@every_release
def test_nothing_is_read_of_a_prompt(num_images, release):
    model, batch, length = tiny_llava().to("meta"), len(num_images), 300
    prompt = VisualPrompt(
        visual=torch.empty(batch, length, dtype=torch.bool, device="meta"),
        num_views=num_images,
        num_visual=[144 * number for number in num_images],
        num_kept=[144 * number for number in num_images],
        num_valid=[length, length, 250][:batch],
    )
    with vscan.reduce(model, "sparsevlm", layers={1: 20, 3: 0.5}, release=release):
        output = model.model.language_model(
            inputs_embeds=torch.empty(batch, length, 32, device="meta"), visual_prompt=prompt, use_cache=True
        )
    left = SparseVLM(release).leaves(20, 144)
    assert left == (24 if release == "1.5" else 20)
    if batch == 1:
        last = SparseVLM(release).leaves(left // 2, left)
        assert [cache_of(output).get_seq_length(layer) - length + 144 for layer in (0, 1, 3)] == [144, left, last]


# -------------------------------------------------------------------------------------------------------- schedules


def processed(layers: dict, num_layers: int, num_tokens: int, release: str) -> float:
    """Visual tokens that layers see on average; of D dropped, int(q / 10) + 1 come back, q = int(0.3 D) + 1."""
    seen, left = [], num_tokens
    for layer in range(num_layers):
        budget = layers.get(layer, left)
        num = max(1, int(budget * left)) if isinstance(budget, float) else budget
        if num < left:
            left = num + (int((int((left - num) * 0.3) + 1) / 10) + 1 if release == "1.5" else 0)
        seen.append(left)
    return sum(seen) / num_layers


def test_published_lists_leave_what_was_measured():
    method = SparseVLM()
    sizes = {"192": [309, 204, 113], "128": [312, 117, 39], "64": [82, 32, 18]}
    averages = {"192": 206.5, "128": 145.40625, "64": 82.25}
    assert set(method.presets) == {f"published-{name}" for name in sizes}
    for name, expected in sizes.items():
        schedule, left = method.presets[f"published-{name}"], 576
        assert schedule.visual_tokens is None
        assert list(schedule.layers) == [3, 7, 16]
        for num, size in zip(schedule.layers.values(), expected, strict=True):
            left = method.leaves(num, left)
            assert left == size
        assert processed(schedule.layers, 32, 576, "1.5") == averages[name]


def test_release_2_0_has_lists_of_its_own_recycles_nothing_and_keeps_positions():
    method = SparseVLM(release="2.0")
    assert {name: list(schedule.layers.values()) for name, schedule in method.presets.items()} == {
        "published-192": [300, 200, 118],
        "published-128": [238, 108, 60],
        "published-96": [246, 54, 28],
        "published-64": [66, 34, 20],
    }
    assert (method.leaves(300, 576), method.leaves(576, 576)) == (300, 576)
    assert (method.positions, SparseVLM().positions) == ("original", "compact")
    with pytest.raises(ValueError, match=r"release: expected one of '1.5', '2.0', got '1.0'"):
        SparseVLM(release="1.0")


def test_presets_are_those_of_the_release():
    model = tiny_llava(num_layers=17, side=24)
    with vscan.reduce(model, "sparsevlm", preset="published-96", release="2.0") as reduction:
        assert dict(reduction.fitted.layers) == {3: 246, 7: 54, 16: 28}
    with vscan.reduce(model, "sparsevlm", preset="published-64") as reduction:
        assert dict(reduction.fitted.layers) == {3: 66, 7: 30, 16: 17}
        assert reduction.fitted.compact_positions
    with pytest.raises(ValueError, match=r"preset: expected one of .*published-64.*, got 'published-96'"):
        vscan.apply(model, "sparsevlm", preset="published-96")


def test_what_loses_nothing_recycles_nothing_and_one_token_is_its_own_cluster():
    assert [SparseVLM().leaves(num, 20) for num in (0, 10, 19, 20)] == [1, 11, 20, 20]
    assert SparseVLM().leaves(0, 0) == 0


@pytest.mark.parametrize(
    ("num_layers", "starts"),
    [(32, [3, 7, 16]), (40, [4, 9, 20]), (28, [3, 6, 14]), (36, [3, 8, 18]), (8, [1, 2, 4]), (4, [1, 2]), (2, [1])],
)
@every_release
def test_stages_lie_at_the_published_shares_of_the_depth(num_layers, starts, release):
    assert list(SparseVLM(release).schedule(300, num_layers, 576).layers) == starts


@pytest.mark.parametrize("num_layers", [32, 28, 8, 3])
@pytest.mark.parametrize("num_tokens", [576, 1024, 64])
@every_release
def test_the_average_is_what_layers_process(num_layers, num_tokens, release):
    method = SparseVLM(release)
    with pytest.raises(Unreachable, match="not reachable") as refused:
        method.schedule(1, num_layers, num_tokens)
    least = refused.value.least
    with pytest.raises(Unreachable):
        method.schedule(least - 1, num_layers, num_tokens)
    dense = max(1, round(3 * num_layers / 32))
    assert dense * num_tokens / num_layers < least < dense * num_tokens / num_layers + num_tokens / 30 + 2
    for average in range(least, num_tokens + 1, max(1, num_tokens // 20)):
        schedule = method.schedule(average, num_layers, num_tokens)
        assert schedule.visual_tokens is None
        found = processed(schedule.layers, num_layers, num_tokens, release)
        assert average - 3 < found <= average
        if num_tokens == 576:
            shares = method.schedule((average + 1e-3) / num_tokens, num_layers, None).layers
            assert all(isinstance(share, float) for share in shares.values())
            assert processed(shares, num_layers, num_tokens, release) == found  # the same tokens to the last


def test_an_average_of_a_published_list_is_that_list():
    for release in ("1.5", "2.0"):
        for schedule in SparseVLM(release).presets.values():
            average = processed(schedule.layers, 32, 576, release)
            by_count = SparseVLM(release).schedule(math.ceil(average), 32, 576).layers
            assert all(0 <= by_count[layer] - num <= 4 for layer, num in schedule.layers.items())


def test_the_least_share_can_be_asked_for():
    with pytest.raises(Unreachable) as refused:
        SparseVLM().schedule(0.05, 28, None)
    least = refused.value.least
    assert float(f"{least:g}") == least
    assert processed(SparseVLM().schedule(least, 28, None).layers, 28, 576, "1.5") <= least * 576
