"""ToMe's matching and towers equal a slow reference, its counts meet every budget that exists, and no token is lost."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import close, pictures, tiny_llava, tiny_next, tiny_original
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen_helpers import tiny_qwen
from torch import Tensor

import vscan
from vscan.methods.base import Schedule, Views
from vscan.methods.tome import ToMe, match, merge, merges
from vscan.models.towers import Seen, run_tower

quick = settings(deadline=None, derandomize=True, max_examples=100)
NUM_TOKENS, DEPTH = 144, 6  # of tiny_llava: what its picture has, and the blocks that lead to the layer it reads


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


def run(model, pixels: Tensor, num: int, method: ToMe | None = None) -> Seen:
    with torch.no_grad():
        return run_tower(model.model.vision_tower, pixels, -2, block=(method or ToMe()).block, num=num)


def views_of(seen: Seen, project=lambda tokens: tokens) -> Views:
    features = seen.hidden[:, 1:]
    return Views(torch.zeros(len(features), 3, 2, 2), features, {}, (12, 12), project, state=seen.state)


def match_by_hand(metric: list[list[float]], num_merged: int) -> list[int]:
    """The description, token by token."""

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(x * y for x, y in zip(one, other, strict=True))

    a, b = range(0, len(metric), 2), range(1, len(metric), 2)
    partner = {i: max(b, key=lambda j: (cosine(metric[i], metric[j]), -j)) for i in a}
    nearest = sorted(a[1:], key=lambda i: (-cosine(metric[i], metric[partner[i]]), i))
    merged = nearest[:num_merged]
    order = [i for i in a if i not in merged] + list(b)
    return [order.index(partner[token] if token in merged else token) for token in range(len(metric))]


@quick
@given(st.integers(2, 40), st.data())
def test_matching_is_the_rule_by_hand(length, data):
    """Metrics are signs in four dimensions: of one length, with many ties, and exact in every order of addition."""
    num_merged = data.draw(st.integers(0, (length - 1) // 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    metric = torch.randint(0, 2, (3, length, 4), generator=generator) * 2.0 - 1
    into = match(metric, num_merged)
    assert into.tolist() == [match_by_hand(view.tolist(), num_merged) for view in metric]
    assert into[:, 0].tolist() == [0] * 3  # [CLS] stays, and stays alone
    assert (into[:, 1:] > 0).all()


def test_merging_twice_is_the_mean_of_all_that_went_together():
    generator = torch.Generator().manual_seed(0)
    hidden, sizes = torch.randn(2, 31, 5, generator=generator), torch.ones(2, 31)
    first = match(torch.randn(2, 31, 3, generator=generator), 15)
    second = match(torch.randn(2, 16, 3, generator=generator), 7)
    merged, totals = merge(*merge(hidden, sizes, first, 16), second, 9)
    into = second.gather(1, first)
    for view in range(2):
        for place in range(9):
            members = hidden[view][into[view] == place]
            assert totals[view, place] == len(members)
            close(merged[view, place], members.mean(dim=0))


@given(st.integers(1, 600), st.integers(1, 30), st.data())
@quick
def test_counts_add_up_and_are_even_where_half_is_not_the_limit(num_tokens, depth, data):
    least = -(-num_tokens // 2**depth)
    num = data.draw(st.integers(least, num_tokens))
    counts, left = merges(num_tokens, num, depth), num_tokens
    share = (num_tokens - num) / depth
    is_limited = False
    for count in counts:
        assert 0 <= count <= left // 2  # (t - 1) // 2 of t tokens with [CLS]
        is_limited |= count == left // 2
        left -= count
    assert left == num
    assert counts == sorted(counts, reverse=True)
    assert is_limited or (counts[0] <= share + 1 and counts[-1] > share - 1)
    with pytest.raises(ValueError, match=f"^ToMe: expected at least {least} of {num_tokens} tokens"):
        merges(num_tokens, least - 1, depth)


def test_counts_of_llava_are_those_of_the_published_budgets():
    assert merges(576, 192, 23) == [17] * 16 + [16] * 7
    assert merges(576, 208, 23) == [16] * 23
    assert merges(576, 64, 23) == [23] * 6 + [22] * 17
    assert merges(576, 16, 23) == [25] * 16 + [24] * 6 + [16]  # the last gets 32, and can merge half of them
    assert merges(576, 64, 5) == [112] * 4 + [64]
    assert merges(576, 64, 4) == [160, 160, 128, 64]


def tower_by_hand(tower, view: Tensor, num: int, proportional: bool) -> tuple[Tensor, list[list[int]]]:
    """A view's tokens and the members of each, block by block with attention written out."""
    hidden = tower.pre_layrnorm(tower.embeddings(view.unsqueeze(0)))[0]
    members = [[token] for token in range(len(hidden))]
    for block, count in zip(tower.encoder.layers, merges(len(hidden) - 1, num, DEPTH), strict=False):
        attention, normed = block.self_attn, block.layer_norm1(hidden)
        heads = attention.num_heads
        query, key, value = (
            states.unflatten(-1, (heads, -1)).transpose(0, 1)
            for states in (attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed))
        )
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        if proportional:
            logits = logits + torch.tensor([float(len(group)) for group in members]).log()
        hidden = hidden + attention.out_proj((logits.softmax(dim=-1) @ value).transpose(0, 1).flatten(1))
        metric = key.mean(dim=0)
        unit = (metric / metric.norm(dim=-1, keepdim=True)).double().tolist()
        into = match_by_hand(unit, count) if count > 0 else list(range(len(hidden)))
        groups = [[token for token, place in enumerate(into) if place == new] for new in range(len(into) - count)]
        weights = [torch.tensor([float(len(members[token])) for token in group]) for group in groups]
        means = [(hidden[group] * w[:, None]).sum(dim=0) / w.sum() for group, w in zip(groups, weights, strict=True)]
        members = [[patch for token in group for patch in members[token]] for group in groups]
        hidden = torch.stack(means)
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    return hidden, members


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("num", [20, 143])
def test_a_tower_is_the_description_by_hand(model, num, proportional):
    pixels = pictures(model, 2)
    seen = run(model, pixels, num, ToMe(proportional))
    for view in range(2):
        with torch.no_grad():
            hidden, members = tower_by_hand(model.model.vision_tower, pixels[view], num, proportional)
        close(seen.hidden[view], hidden)
        assert seen.state["sizes"][view].tolist() == [len(group) for group in members]
        for place, group in enumerate(members):
            assert (seen.state["into"][view] == place).nonzero()[:, 0].tolist() == sorted(group)


def test_merging_nothing_is_the_stock_tower(model):
    pixels = pictures(model, 2)
    with torch.no_grad():
        stock = run_tower(model.model.vision_tower, pixels, -2).hidden
    close(run(model, pixels, NUM_TOKENS).hidden, stock)


@pytest.mark.parametrize("num", [3, 4, 31, 72, 143])
def test_sizes_add_up_and_a_batch_equals_its_views(model, num):
    pixels = pictures(model, 3)
    seen = run(model, pixels, num)
    assert seen.hidden.shape == (3, num + 1, 32)
    into, sizes = seen.state["into"], seen.state["sizes"]
    assert sizes.sum(dim=1).tolist() == [NUM_TOKENS + 1] * 3
    assert sizes[:, 0].tolist() == [1] * 3
    for view in range(3):
        assert into[view].bincount(minlength=num + 1).tolist() == sizes[view].tolist()
        alone = run(model, pixels[view : view + 1], num)
        assert alone.state["into"][0].equal(into[view])
        close(alone.hidden[0], seen.hidden[view])


def test_tokens_keep_their_order_on_the_first_patches_of_all_groups(model):
    seen = run(model, pictures(model, 2), 40)
    kept = ToMe().encode(views_of(seen, lambda tokens: 2 * tokens), 40)
    assert kept.values.equal(2 * seen.hidden[:, 1:])
    assert kept.into.equal(seen.state["into"][:, 1:] - 1)
    for slots, into in zip(kept.slots.tolist(), kept.into.tolist(), strict=True):
        assert slots == sorted(into.index(place) for place in range(40))
        assert len(set(slots)) == 40


@pytest.mark.parametrize("original", [False, True])
def test_the_decoder_is_given_the_tokens_in_their_order(original):
    model = tiny_original() if original else tiny_llava(vision_layers=4, side=8)
    tower = model.model.vision_tower.vision_tower if original else model.model.vision_tower
    project = model.model.mm_projector if original else model.model.multi_modal_projector
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = project(run_tower(tower, pixels, -2, block=ToMe().block, num=20).hidden[:, 1:])
        with vscan.reduce(model, "tome", 20):
            images = model.embed_images(pixels, None) if original else model.model.get_image_features(pixels)
    for tokens, kept, view in zip(images.pooler_output, images.kept, expected, strict=True):
        assert kept.sum() == 20
        close(tokens[kept], view)


def test_every_crop_is_merged_alone():
    model, sizes = tiny_next(), torch.tensor([[32, 64], [64, 32]])
    pixels = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with vscan.reduce(model, "tome", 20):
        together = model.model.get_image_features(pixels, sizes)
        for index in range(2):
            alone = model.model.get_image_features(pixels[index : index + 1], sizes[index : index + 1])
            assert alone.kept[0].equal(together.kept[index])
            close(alone.pooler_output[0], together.pooler_output[index])


@pytest.mark.parametrize("num", [20, 100])
def test_merging_reads_nothing_from_the_device(num):
    model = tiny_llava().to("meta")
    with vscan.reduce(model, "tome", num):
        images = model.model.get_image_features(torch.empty(3, 3, 48, 48, device="meta"))
    assert [tuple(tokens.shape) for tokens in images.pooler_output] == [(NUM_TOKENS, 32)] * 3


def test_what_cannot_be_is_refused(model):
    assert ToMe().schedule(64, 32, 576) == Schedule(64)
    assert [field.name for field in fields(ToMe)] == ["proportional"]
    with pytest.raises(ValueError, match="proportional: expected True or False, got 2"):
        replace(ToMe(), proportional=2)
    with pytest.raises(ValueError, match="at least 3 of 144 tokens behind 6 blocks"):
        vscan.apply(model, "tome", 2)
    with pytest.raises(ValueError, match=r"^method 'tome': expected a vision encoder with a \[CLS\] token"):
        vscan.apply(tiny_qwen(), "tome", 0.5)
