"""Both scans against slow ones written out by hand: any grid, any window, any budget, many ties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.select.scan import capped_local_scan, global_scan, local_scan, scan, top, window_sides, window_table

quick = settings(deadline=None, derandomize=True, max_examples=120)
sides = st.integers(1, 26)
windows = st.integers(1, 8)


def windows_by_hand(grid, window):
    """Every window's tokens; token by token, where the code goes window by window."""
    height, width = grid
    if height % window != 0 or width % window != 0:
        window = 4
    down, across = max(1, height // window), max(1, width // window)
    tokens = [[] for _ in range(down * across)]
    for row in range(height):
        for column in range(width):
            place = min(row // window, down - 1) * across + min(column // window, across - 1)
            tokens[place].append(row * width + column)
    return tokens


def best_by_hand(scores, tokens, num):
    """The best `num` of some tokens of one view, the earlier one first where scores are equal."""
    return sorted(tokens, key=lambda token: (-scores[token], token))[:num]


def local_by_hand(scores, grid, num, window):
    tokens_of = windows_by_hand(grid, window)
    per_window = num // len(tokens_of)
    return [token for tokens in tokens_of for token in best_by_hand(scores, tokens, per_window)]


def random_scores(num_views, num_tokens, levels, seed):
    """Scores of `levels` different values from -0.5 up, as fp32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (num_views, num_tokens), generator=generator) / levels - 0.5


@st.composite
def some_scores(draw, sides=sides, number=1):
    """A grid and `number` score tensors for some views, from nearly all equal to nearly all distinct."""
    grid = (draw(sides), draw(sides))
    num_views, levels, seed = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 7, 2**24])), draw(st.integers(0, 99))
    return grid, *(random_scores(num_views, grid[0] * grid[1], levels, seed + 100 * i) for i in range(number))


# ------------------------------------------------------------------------------------------------------------ top


@quick
@given(some_scores(), st.data())
def test_top_is_descending_and_the_earlier_token_wins_a_tie(setting, data):
    _, scores = setting
    num = data.draw(st.integers(0, scores.shape[1]))
    found = top(scores, num)
    assert found.dtype == torch.long
    assert found.tolist() == [best_by_hand(row, range(len(row)), num) for row in scores.tolist()]


def test_top_of_equal_scores_is_raster_order():
    assert top(torch.zeros(1, 576), 96).tolist() == [list(range(96))]
    assert top(torch.tensor([0.5, 0.25, 0.5, 1.0, 0.25]), 4).tolist() == [3, 0, 2, 1]


# -------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("side", "window", "lengths"),
    [
        (24, 6, [6, 6, 6, 6]),
        (16, 4, [4, 4, 4, 4]),
        (10, 4, [4, 6]),
        (11, 4, [4, 7]),
        (7, 4, [7]),
        (4, 4, [4]),
        (3, 4, [3]),
        (1, 4, [1]),
    ],
)
def test_the_remainder_of_a_side_joins_its_last_window(side, window, lengths):
    found = window_sides(side, window)
    assert [len(part) for part in found] == lengths
    assert [token for part in found for token in part] == list(range(side))


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ((24, 24), [36] * 16),
        ((24, 18), [36] * 12),
        ((12, 6), [36] * 2),
        ((16, 16), [16] * 16),
        ((24, 16), [16] * 24),  # 6 divides one side only
        ((10, 10), [16, 24, 24, 36]),
        ((3, 3), [9]),
        ((2, 9), [8, 10]),
        ((1, 1), [1]),
    ],
)
def test_windows_of_six_where_six_divides_both_sides_else_of_four(grid, sizes):
    table, found = window_table(grid, 6, torch.device("cpu"))
    assert found == tuple(sizes)
    assert table.shape == (len(sizes), max(sizes))


@quick
@given(grid=st.tuples(sides, sides), window=windows)
def test_every_token_is_in_one_window(grid, window):
    table, sizes = window_table(grid, window, torch.device("cpu"))
    tokens = [[token for token in row if token >= 0] for row in table.tolist()]
    assert tokens == windows_by_hand(grid, window)
    assert [len(row) for row in tokens] == list(sizes)
    assert sorted(token for row in tokens for token in row) == list(range(grid[0] * grid[1]))


def test_the_window_table_of_an_inference_also_serves_where_gradients_are_recorded():
    window_table.cache_clear()
    with torch.inference_mode():
        local_scan(torch.rand(1, 24), (4, 6), 3)
    assert not window_table((4, 6), 6, torch.device("cpu"))[0].is_inference()
    assert local_scan(torch.rand(1, 24, requires_grad=True), (4, 6), 3).shape == (1, 3)


# ----------------------------------------------------------------------------------------------------- local scan


@quick
@given(some_scores(), windows, st.data())
def test_the_local_scan_is_the_best_of_every_window(setting, window, data):
    grid, scores = setting
    num = data.draw(st.integers(0, scores.shape[1] + 20))
    found = local_scan(scores, grid, num, window)
    assert found.dtype == torch.long
    assert found.tolist() == [local_by_hand(row, grid, num, window) for row in scores.tolist()]


@pytest.mark.parametrize("num", [1, 15, 16, 47, 48, 287, 288, 560, 576])
def test_every_window_of_llavas_grid_gives_as_many_as_the_floored_share(num):
    scores = random_scores(2, 576, 2**24, seed=1)
    for row in local_scan(scores, (24, 24), num).tolist():
        given_by = [(token // 24 // 6, token % 24 // 6) for token in row]
        assert given_by == [(down, across) for down in range(4) for across in range(4) for _ in range(num // 16)]


def test_a_window_that_is_smaller_than_its_share_gives_all_it_has():
    scores = torch.arange(100.0).unsqueeze(0)
    found = local_scan(scores, (10, 10), 4 * 20)  # 10 x 10: windows of 16, 24, 24 and 36 tokens
    sizes = [16, 20, 20, 20]
    assert found.shape == (1, sum(sizes))
    parts = found[0].split(sizes)
    assert [len(set(part.tolist())) for part in parts] == sizes
    assert parts[0].tolist() == [row * 10 + column for row in (3, 2, 1, 0) for column in (3, 2, 1, 0)]


def test_the_local_scan_by_hand():
    scores = torch.zeros(1, 64)
    scores[0, [9, 27]] = torch.tensor([0.5, 0.75])  # (1, 1) and (3, 3): window 0
    scores[0, [4, 63]] = 0.25  # (0, 4): window 1; (7, 7): window 3
    assert local_scan(scores, (8, 8), 11, window=4).tolist() == [[27, 9, 4, 5, 32, 33, 63, 36]]


# ---------------------------------------------------------------------------------------------- capped local scan


def capped_by_hand(scores, grid, num, window):
    """A walk from the best token down, in which a window that has its share is passed over."""
    tokens_of = windows_by_hand(grid, window)
    window_of = {token: number for number, tokens in enumerate(tokens_of) for token in tokens}
    cap, taken, found = math.ceil(num / len(tokens_of)), [0] * len(tokens_of), []
    for token in best_by_hand(scores, range(len(scores)), len(scores)):
        if len(found) < num and taken[window_of[token]] < cap:
            taken[window_of[token]] += 1
            found.append(token)
    return found


@quick
@given(some_scores(), windows, st.data())
def test_the_capped_local_scan_is_the_walk(setting, window, data):
    grid, scores = setting
    num = data.draw(st.integers(0, scores.shape[1]))
    found = capped_local_scan(scores, grid, num, window)
    assert found.dtype == torch.long
    assert found.tolist() == [capped_by_hand(row, grid, num, window) for row in scores.tolist()]


@pytest.mark.parametrize("grid", [(1, 1), (1, 30), (2, 2), (3, 3), (3, 20), (4, 4), (7, 7), (11, 15), (26, 18)])
def test_half_of_any_budget_fits_under_the_cap(grid):
    scores = random_scores(2, grid[0] * grid[1], 2**24, seed=3)
    for num in range(scores.shape[1] + 1):
        assert capped_local_scan(scores, grid, num // 2).shape == (2, num // 2)
        local, best = scan(scores, scores.flip(0), grid, num, window=4, capped=True)
        assert all(len(set(row)) == num for row in torch.cat((local, best), dim=1).tolist())


# ---------------------------------------------------------------------------------------------------- global scan


@quick
@given(some_scores(), st.data())
def test_the_global_scan_is_the_best_of_what_is_not_excluded(setting, data):
    _, scores = setting
    num_views, num_tokens = scores.shape
    num_excluded = data.draw(st.integers(0, num_tokens))
    num = data.draw(st.integers(0, num_tokens - num_excluded))
    seed = data.draw(st.integers(0, 99))
    order = torch.rand(num_views, num_tokens, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    excluded = order[:, :num_excluded]
    before = scores.clone()
    found = global_scan(scores, excluded, num)
    assert found.dtype == torch.long
    assert found.tolist() == [
        best_by_hand(row, set(range(num_tokens)) - set(without), num)
        for row, without in zip(scores.tolist(), excluded.tolist(), strict=True)
    ]
    assert torch.equal(scores, before)


def test_an_excluded_token_stays_out_however_small_the_others_are():
    scores = torch.zeros(1, 6)
    scores[0, 2] = 1.0
    assert global_scan(scores, torch.tensor([[2, 0]]), 4).tolist() == [[1, 3, 4, 5]]


# ----------------------------------------------------------------------------------------------------------- scan


@quick
@given(some_scores(number=2), windows, st.data())
def test_the_scan_is_the_local_one_and_then_the_global_one_over_the_rest(setting, window, data):
    grid, local_scores, global_scores = setting
    num = data.draw(st.integers(1, local_scores.shape[1]))
    eighths = data.draw(st.integers(0, 8))
    local, best = scan(local_scores, global_scores, grid, num, window, global_share=eighths / 8)
    for row in range(len(local_scores)):
        by_hand = local_by_hand(local_scores[row].tolist(), grid, num * (8 - eighths) // 8, window)
        assert local[row].tolist() == by_hand
        rest = set(range(local_scores.shape[1])) - set(by_hand)
        assert best[row].tolist() == best_by_hand(global_scores[row].tolist(), rest, num - len(by_hand))


@quick
@given(some_scores(number=2), windows, st.floats(0, 1), st.data())
def test_any_budget_is_met_exactly_with_distinct_tokens(setting, window, share, data):
    grid, local_scores, global_scores = setting
    num = data.draw(st.integers(1, local_scores.shape[1]))
    chosen = torch.cat(scan(local_scores, global_scores, grid, num, window, share), dim=1)
    assert chosen.shape == (len(local_scores), num)
    assert all(len(set(row)) == num for row in chosen.tolist())
    assert 0 <= chosen.min() <= chosen.max() < local_scores.shape[1]


@pytest.mark.parametrize("grid", [(24, 24), (10, 10), (5, 7), (2, 3)])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_every_budget_of_a_grid_is_met_exactly(grid, share):
    num_tokens = grid[0] * grid[1]
    local_scores, global_scores = random_scores(2, num_tokens, 50, seed=2).split(1)
    for num in range(1, num_tokens):
        chosen = torch.cat(scan(local_scores, global_scores, grid, num, 6, share), dim=1)
        assert chosen.unique().numel() == chosen.numel() == num


@pytest.mark.parametrize(
    ("num", "num_local"),
    [(96, 48), (100, 48), (48, 16), (63, 16), (144, 64), (33, 16), (500, 240), (575, 272), (32, 16), (576, 288)],
)
def test_the_published_counts_where_the_shortfall_goes_to_the_global_scan(num, num_local):
    assert num_local == 16 * (int(num * 0.5) // 16)
    local, best = scan(*random_scores(2, 576, 2**24, seed=3).split(1), (24, 24), num)
    assert local.shape == (1, num_local)
    assert best.shape == (1, num - num_local)


@pytest.mark.parametrize("num", [1, 2, 15, 16, 31])
def test_less_than_one_token_per_window_leaves_all_to_the_global_scan(num):
    local_scores, global_scores = random_scores(2, 576, 2**24, seed=4).split(1)
    local, best = scan(local_scores, global_scores, (24, 24), num)
    assert local.shape == (1, 0)
    assert best.tolist() == [best_by_hand(global_scores[0].tolist(), range(576), num)]


def test_the_shares_of_nothing_and_of_all():
    local_scores, global_scores = random_scores(2, 576, 2**24, seed=5).split(1)
    local, best = scan(local_scores, global_scores, (24, 24), 96, global_share=0)
    assert (local.shape, best.shape) == ((1, 96), (1, 0))
    local, best = scan(local_scores, global_scores, (24, 24), 96, global_share=1)
    assert (local.shape, best.shape) == ((1, 0), (1, 96))


@pytest.mark.parametrize(
    ("num", "share", "num_local"),
    [(160, 0.9, 16), (480, 0.9, 48), (160, 0.8, 32), (240, 0.8, 48), (160, 0.7, 48), (160, 0.3, 112), (160, 0.1, 144)],
)
def test_a_share_written_as_a_decimal_loses_no_token_to_rounding(num, share, num_local):
    # (1 - 0.9) * 160 is 15.999999999999996 in floating point; the local scan asks for 16, one for each window.
    local, best = scan(*random_scores(2, 576, 2**24, seed=6).split(1), (24, 24), num, global_share=share)
    assert (local.shape[1], best.shape[1]) == (num_local, num - num_local)


@quick
@given(some_scores(number=2), windows, st.data())
def test_a_batch_of_views_equals_each_view_alone(setting, window, data):
    grid, local_scores, global_scores = setting
    num = data.draw(st.integers(1, local_scores.shape[1]))
    local, best = scan(local_scores, global_scores, grid, num, window)
    for row in range(len(local_scores)):
        alone = scan(local_scores[row : row + 1], global_scores[row : row + 1], grid, num, window)
        assert torch.equal(local[row : row + 1], alone[0])
        assert torch.equal(best[row : row + 1], alone[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_with_their_many_ties_are_ranked_the_same_every_time(dtype):
    scores = torch.rand(4, 576, generator=torch.Generator().manual_seed(7)).softmax(dim=1).to(dtype).float()
    assert all(len(set(row)) < 500 for row in scores.tolist())
    local, best = scan(scores, scores.flip(0), (24, 24), 100)
    for row in range(4):
        by_hand = local_by_hand(scores[row].tolist(), (24, 24), 50, 6)
        assert local[row].tolist() == by_hand
        rest = set(range(576)) - set(by_hand)
        assert best[row].tolist() == best_by_hand(scores[3 - row].tolist(), rest, 100 - 48)
    for _ in range(3):
        again = scan(scores.clone(), scores.flip(0), (24, 24), 100)
        assert torch.equal(again[0], local)
        assert torch.equal(again[1], best)


@pytest.mark.parametrize(("grid", "num"), [((24, 24), 96), ((10, 10), 90), ((3, 3), 5)])
def test_shapes_are_known_without_the_data(grid, num):
    scores = torch.empty(5, grid[0] * grid[1], device="meta")  # reading a value of a meta tensor is an error
    local, best = scan(scores, scores, grid, num)
    assert local.shape[1] + best.shape[1] == num
