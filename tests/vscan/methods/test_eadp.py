"""EADP where recorded data says nothing: budgets of pictures in crops, few words, tiny grids, powers."""

import pytest
import torch

from vscan.methods.base import Layout, Views
from vscan.methods.eadp import EADP, local
from vscan.methods.shared.cover import cosines, cover
from vscan.methods.shared.crops import quotas
from vscan.methods.shared.grid import smoothed
from vscan.methods.shared.question import Question


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def question(num_words: int = 6, width: int = 4, seed: int = 5) -> Question:
    words = random(num_words, width, seed=seed)
    return Question(words.mean(dim=0, keepdim=True), [words])


@pytest.mark.parametrize("num_words", [1, 4, 5, 10, 23])
def test_only_the_words_that_point_at_least_count(num_words):
    seen, words = torch.nn.functional.normalize(random(12, 4), dim=-1), random(num_words, 4, seed=1)
    cosine = torch.stack([torch.cosine_similarity(seen, word, dim=-1) for word in words])
    shares = (100 * cosine).softmax(dim=-1)
    entropy = -(shares * (shares + 1e-12).log()).sum(dim=-1)
    kept = sorted(range(num_words), key=lambda word: entropy[word].item())[: max(1, num_words // 5)]
    weights = (-entropy[kept] / (0.01 + 1e-6)).softmax(dim=0)
    torch.testing.assert_close(
        local(seen, words, 1), sum(w * cosine[word] for w, word in zip(weights, kept, strict=True))
    )


@pytest.mark.parametrize("grid", [(4, 5), (1, 6), (2, 2), (1, 1)])
def test_smoothing_is_a_mirrored_gaussian(grid):
    weights = random(2, grid[0] * grid[1])
    kernel = torch.tensor([-0.5, 0.0, -0.5]).exp()
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2

    def mirrored(index: int, side: int) -> int:
        index = abs(index)
        return 0 if side == 1 else min(index, 2 * side - 2 - index)

    expected = torch.zeros_like(weights)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    source = mirrored(row + down, grid[0]) * grid[1] + mirrored(column + right, grid[1])
                    expected[:, row * grid[1] + column] += kernel[down + 1, right + 1] * weights[:, source]
    torch.testing.assert_close(smoothed(weights, grid), expected)


@pytest.mark.parametrize(
    ("shares", "num", "expected", "turns"),
    [
        ([0.5, 0.3, 0.2], 10, [5, 3, 2], None),
        ([0.54, 0.26, 0.20], 10, [5, 2, 2], [1, 0, 2]),
        ([0.98, 0.01, 0.01], 10, [7 + 1, 1, 1], None),
        ([1.0, 0.0, 0.0], 4, [2, 1, 1], None),
        ([0.4, 0.3, 0.3], 1, [0, 1, 1], None),  # fewer than crops: the sum is cut later
    ],
)
def test_shares_are_floored_and_at_least_one(shares, num, expected, turns):
    weights = torch.tensor(shares).unsqueeze(1).expand(-1, 4)
    found, order = quotas(weights, num)
    assert sum(found.tolist()) <= max(num, len(shares) - 1)
    if sum(expected) <= num:
        assert (found - torch.tensor(expected)).abs().max() <= 1  # 5.0 of a float may be 4.99
    if turns is not None:
        assert (found.tolist(), order.tolist()) == (expected, turns)


@pytest.mark.parametrize("num", [1, 2, 7, 20, 33])
def test_a_picture_in_crops_keeps_its_budget_exactly_and_nothing_of_padding(num):
    tokens, asked = random(5, 12, 4), question()
    seen = torch.ones(5, 12, dtype=torch.bool)
    seen[1, :4], seen[2, 4:] = False, False
    views = Views(tokens, tokens, {}, (3, 4), lambda rows: rows, layout=Layout((2, 2), seen), text=[asked] * 5)
    kept = EADP().encode(views, num)
    assert kept.valid.all()
    slots = kept.slots[0].tolist()
    assert len(set(slots)) == num
    assert seen.flatten()[slots].all()
    assert slots == sorted(slots)


def test_each_crop_keeps_the_first_of_its_own_choice():
    tokens, asked = random(5, 12, 4), question()
    layout = Layout((2, 2), torch.ones(5, 12, dtype=torch.bool))
    views = Views(tokens, tokens, {}, (3, 4), lambda rows: rows, layout=layout, text=[asked] * 5)
    slots = EADP().encode(views, 25).slots[0]
    weights = EADP().weights([asked] * 5, tokens, (3, 4), together=True)
    order = cover((cosines(tokens) + 1) / 2 * weights.unsqueeze(1), 12)
    for crop in range(5):
        mine = (slots[slots // 12 == crop] % 12).tolist()
        assert mine == sorted(order[crop, : len(mine)].tolist())
        assert abs(len(mine) - 25 * (weights[crop].sum() / weights.sum()).item()) < 1


def test_where_all_tokens_say_the_same_of_the_question_all_weigh_the_same():
    tokens = torch.ones(1, 6, 4)
    weights = EADP(beta=3.0).weights([question()], tokens, (2, 3), together=False)
    torch.testing.assert_close(weights, torch.ones(1, 6))


def test_powers_and_signs_are_those_of_the_relevance():
    tokens, asked = random(1, 12, 4), question()
    clip = asked._replace(see=lambda features: features)
    plain = EADP(beta=1.0, flipped=False).weights([asked], tokens, (3, 4), together=False)
    turned = EADP(beta=1.0, flipped=True).weights([asked], tokens, (3, 4), together=False)
    torch.testing.assert_close(EADP().weights([asked], tokens, (3, 4), together=False), plain**2)
    torch.testing.assert_close(EADP().weights([clip], tokens, (3, 4), together=False), turned)
    assert EADP(alpha=1.0).weights([asked], tokens, (3, 4), together=False).argmax() != turned.argmax()
