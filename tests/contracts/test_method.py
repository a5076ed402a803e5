"""What holds of every method in `vscan.METHODS`: a new one is tried here as soon as its line is there.

What a method cannot keep by its nature is named below, with the reason; nothing else is excepted.
"""

import re

import pytest
import torch
from contracts.calling import CASES, ENCODING, WIDTH, call, cast, changed, make, picked, put, rank, rows_of, views_of
from helpers import close

# Methods whose tokens are no single ones of the tower's.
AVERAGES = {
    "vscan": "a dropped token is averaged into the kept one that it is nearest to, unless merge=False",
    "downsample": "a token is the mean of a rectangle",
}
# Methods whose tokens are no averages either.
SUMS = {
    "visionzip": "a contextual token is a target and the mean of what goes to it, added as published; [CLS] stays too",
    "prumerge": "a token is itself and its cluster times raw attention, the last one all that is dropped",
}
# Methods for which "of two that score alike the earlier one stays" says nothing.
UNTIED = {
    "random": "no score: numbers that are all different",
    "downsample": "no score: the middle of every rectangle",
    "divprune": "no score: distances, which are all 0 there",
    "cdpruner": "no row: the question",
    "mmtok": "no row: the question",
    "eadp": "no row: the question",
    "visionzip": "targets lie at even distances, and [CLS] takes a slot",
    "prumerge": "no row: an attention of its own; and a grid",
    "vispruner": "of two tokens that look alike its rounds drop the one that attention ranks higher, as published",
}
# Methods that loop over what is on the device, or read it.
READS: dict[str, str] = {}

GRIDS = {"square": (12, 12), "oblong": (5, 7), "line": (1, 9), "windows": (8, 4)}
NUMS = (1, 2, 5, 8)

every_case = pytest.mark.parametrize("case", CASES)
every_encoder = pytest.mark.parametrize("case", ENCODING)
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


@pytest.fixture
def method(case):
    return make(*CASES[case])


def averages(case: str) -> bool:
    name, fields = CASES[case]
    return name in SUMS or (name in AVERAGES and fields.get("merge", True))


def called_or_refused(method, views, num: int) -> tuple:
    """What a method made of views and None, or None and the message with which it refused the number."""
    try:
        return call(method, views, num), None
    except ValueError as error:
        return None, str(error)


def nums_of(grid: tuple[int, int]) -> list[int]:
    num_tokens = grid[0] * grid[1]
    return [num for num in dict.fromkeys((*NUMS, num_tokens // 2, num_tokens - 1)) if num < num_tokens]


@every_encoder
@every_grid
def test_the_budget_is_met_exactly_or_refused_with_both_numbers(method, grid):
    views = views_of(method, num_views=2, grid=grid)
    num_met = 0
    for num in nums_of(grid):
        found, refusal = called_or_refused(method, views, num)
        if refusal:
            assert re.search(rf"expected \D*{num}\b.*, got \D*\d", refusal)
            continue
        num_met += 1
        assert (found.slots.shape, found.values.shape) == ((2, num), (2, num, WIDTH))
        assert found.slots.dtype == torch.long
    assert num_met > 0


@every_encoder
@every_grid
def test_slots_are_ascending_different_and_in_the_view(method, grid):
    views = views_of(method, grid=grid)
    for num in nums_of(grid):
        slots = call(method, views, num).slots
        assert (slots[:, 1:] > slots[:, :-1]).all(), f"{num} tokens: {slots.tolist()}"
        assert slots.min() >= 0
        assert slots.max() < grid[0] * grid[1]


@every_encoder
@pytest.mark.parametrize("num", [3, 20, 100])
def test_a_batch_of_views_equals_its_views_alone(case, method, num):
    views = views_of(method)
    slots, values = call(method, views, num)
    for view in range(3):
        alone = call(method, picked(views, [view]), num)
        assert torch.equal(slots[view], alone.slots[0])
        if averages(case):  # by a product of matrices, which may be taken in another order
            close(values[view], alone.values[0], 1e-5)
        else:
            assert torch.equal(values[view], alone.values[0])


@every_encoder
@pytest.mark.parametrize("num", [3, 20, 100])
def test_a_view_does_not_depend_on_the_others_nor_on_its_place(method, num):
    views, others = views_of(method), views_of(method, seed=1)
    slots, values = call(method, views, num)
    # The others are a thousand times as large, and scored the other way round.
    others = changed(others, lambda tensor: -1000 * tensor)
    for place in range(3):
        mixed = changed(others, torch.clone)
        put(mixed, place, views, 1)
        found = call(method, mixed, num)
        assert torch.equal(found.slots[place], slots[1])
        assert torch.equal(found.values[place], values[1])


@every_encoder
def test_what_comes_out_is_a_function_of_what_went_in(method):
    views = views_of(method)
    before, state = changed(views, torch.clone), torch.random.get_rng_state()
    first = call(method, views, 20)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    second = call(method, views, 20)
    assert torch.equal(first.slots, second.slots)
    assert torch.equal(first.values, second.values)
    assert torch.equal(views.features, before.features)
    assert torch.equal(views.pixels, before.pixels)
    for layer, row in views.rows.items():
        assert torch.equal(row, before.rows[layer])


@every_encoder
@pytest.mark.parametrize("best", [range(0), range(1, 49, 2), range(30, 49)], ids=["none", "odd", "last"])
def test_of_tokens_that_score_alike_the_earlier_ones_stay(case, method, best):
    if CASES[case][0] in UNTIED:
        pytest.skip(UNTIED[CASES[case][0]])
    # 7 x 7 tokens are one window: nothing beside the score could prefer a later one.
    views = views_of(method, grid=(7, 7), alike=True)
    best, rest = list(best), sorted(set(range(49)) - set(best))
    for row in views.rows.values():
        row[:, best] += 1
    for num in range(1, 49):
        expected = sorted([*best, *rest][:num])
        assert call(method, views, num).slots.tolist() == [expected] * 3


@every_encoder
@pytest.mark.parametrize("num", [3, 20, 100])
def test_kept_tokens_are_the_projected_features_of_their_slots(case, method, num):
    if CASES[case][0] in SUMS:
        pytest.skip(SUMS[CASES[case][0]])
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    views = changed(views_of(method), lambda tensor: tensor, project=lambda features: features @ weight)
    slots, values = call(method, views, num)
    projected = views.features @ weight
    if averages(case):
        # An average lies between the smallest and the largest; that of tokens that are all alike is that token.
        assert (values >= projected.amin(dim=1, keepdim=True) - 1e-5).all()
        assert (values <= projected.amax(dim=1, keepdim=True) + 1e-5).all()
        views = changed(views_of(method, alike=True), lambda tensor: tensor, project=lambda features: features @ weight)
        close(call(method, views, num).values, (views.features @ weight)[:, :num], 1e-5)
    else:
        close(values, projected.take_along_dim(slots.unsqueeze(-1), dim=1), 1e-5)


@every_encoder
@pytest.mark.parametrize("num", [3, 20, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_the_tokens_of_the_same_values_in_float32(method, num, dtype):
    views = cast(views_of(method), dtype)
    slots, values = call(method, views, num)
    expected = call(method, cast(views, torch.float32), num)
    assert torch.equal(slots, expected.slots)
    assert values.dtype == dtype
    close(values.float(), expected.values, 4 * torch.finfo(dtype).eps)


@every_encoder
@pytest.mark.parametrize("num", [3, 20, 100])
def test_nothing_is_read_from_the_device(case, method, num):
    if CASES[case][0] in READS:
        pytest.skip(READS[CASES[case][0]])
    views = changed(views_of(method), lambda tensor: tensor.to("meta"))
    slots, values = call(method, views, num)
    assert (slots.device.type, slots.shape) == ("meta", (3, num))
    assert (values.device.type, values.shape) == ("meta", (3, num, WIDTH))


class TestInTheDecoder:
    @every_case
    def test_every_row_is_ranked_alone_in_float32(self, method):
        rows = rows_of()
        scores = rank(method, rows)
        assert (scores.shape, scores.dtype) == ((3, 20), torch.float32)
        for row in range(3):
            assert torch.equal(scores[row], rank(method, rows[row : row + 1])[0])
        assert torch.equal(rows, rows_of())
        assert torch.equal(rank(method, rows), scores)

    @every_case
    def test_padding_on_the_left_changes_nothing(self, method):
        rows = rows_of()
        padded = torch.cat((torch.zeros(3, rows.shape[1], 6), rows), dim=-1)
        assert torch.equal(rank(method, padded)[:, 6:], rank(method, rows))

    @every_case
    def test_columns_that_are_attended_to_alike_score_alike(self, case, method):
        if CASES[case][0] == "random":
            pytest.skip(UNTIED["random"])
        rows = rows_of()
        rows[..., 7] = rows[..., 11] = rows[..., 3]
        scores = rank(method, rows)
        assert torch.equal(scores[:, 7], scores[:, 3])
        assert torch.equal(scores[:, 11], scores[:, 3])

    @every_case
    def test_nothing_is_read_from_the_device(self, case, method):
        if CASES[case][0] in READS:
            pytest.skip(READS[CASES[case][0]])
        scores = rank(method, rows_of().to("meta"))
        assert (scores.device.type, scores.shape) == ("meta", (3, 20))
