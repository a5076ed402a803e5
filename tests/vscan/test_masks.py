"""Tokens laid out among columns of text, and a segment whose tokens change, against plain lists."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vscan.kept import Kept, Planned
from vscan.masks import arrange, compact
from vscan.prompt import Segment, VisualPrompt

quick = settings(deadline=None, derandomize=True, max_examples=150)


def arranged_by_hand(text: list[bool], slots: list[int], length: int) -> list[tuple[int, bool, int]]:
    """One item: (column, whether it holds something, which token) of every place."""
    width, at = len(text), {}
    behind = 0
    for number, slot in enumerate(slots):
        if slot < width:
            behind = max(behind, slot)  # a token whose slot is below an earlier one's stands behind its predecessor
            at.setdefault(behind, []).append((slot, True, number))
    taken = {slot for slot in slots if slot < width}
    unused = [column for column in range(width) if not text[column] and column not in taken]
    fillers = unused[: length - sum(text) - sum(map(len, at.values()))]
    found = []
    for column in range(width):
        if text[column] or column in fillers:
            found.append((column, text[column], -1))
        found += at.get(column, [])
    return found


@st.composite
def some_items(draw):
    """Text, bool [B, L], and the slots of tokens, long [B, T]: several spans, unequal numbers, some that go back."""
    batch, width, seed = draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (batch, width), generator=generator)  # text, visual, padding
    if draw(st.booleans()):
        kinds = kinds.sort(dim=1).values  # spans in one piece
    rows = []
    for kind in kinds.tolist():
        places = [column for column, is_visual in enumerate(kind) if is_visual == 1]
        slots = sorted(places[i] for i in torch.randperm(len(places), generator=generator)[: draw(st.integers(0, 24))])
        for _ in range(draw(st.integers(0, 3)) if len(slots) > 1 else 0):  # tokens that stand further back
            back = draw(st.integers(0, len(slots) - 1))
            slots.insert(draw(st.integers(back, len(slots) - 1)), slots.pop(back))
        rows.append(slots)
    longest = max(map(len, rows))
    slots = [[*row, *[width] * (longest - len(row))] for row in rows]
    return kinds == 0, torch.tensor(slots, dtype=torch.long).view(batch, longest)


@quick
@given(some_items(), st.data())
def test_tokens_lie_among_the_text_as_a_plain_list_would_have_them(items, data):
    text, slots = items
    batch, width = text.shape
    held = text.sum(dim=1) + (slots < width).sum(dim=1)
    length = data.draw(st.integers(int(held.max()), width))
    columns, holds, tokens = arrange(text, slots, length)
    assert columns.shape == holds.shape == tokens.shape == (batch, length)
    assert (columns.dtype, holds.dtype, tokens.dtype) == (torch.long, torch.bool, torch.long)
    for item in range(batch):
        found = list(zip(columns[item].tolist(), holds[item].tolist(), tokens[item].tolist(), strict=True))
        assert found == arranged_by_hand(text[item].tolist(), slots[item].tolist(), length)


@quick
@given(some_items())
def test_tokens_in_order_lie_where_compacting_puts_them(items):
    text, slots = items
    slots = slots.sort(dim=1).values
    taken = torch.zeros(len(text), text.shape[1] + 1, dtype=torch.bool).scatter_(1, slots, True)[:, :-1]
    length = int((text | taken).sum(dim=1).max())
    columns, holds, _ = arrange(text, slots, length)
    expected_columns, expected_holds = compact(text | taken, length)
    assert torch.equal(columns, expected_columns)
    assert torch.equal(holds, expected_holds)


def test_arranging_by_hand():
    text = torch.tensor([[True, False, False, True, False, False, True]] * 2)
    columns, holds, tokens = arrange(text, torch.tensor([[2, 1, 5], [4, 7, 7]]), 6)  # the second item has one token
    assert columns.tolist() == [[0, 2, 1, 3, 5, 6], [0, 1, 2, 3, 4, 6]]
    assert holds.tolist() == [[True] * 6, [True, False, False, True, True, True]]
    assert tokens.tolist() == [[-1, 0, 1, -1, 2, -1], [-1, -1, -1, -1, 0, -1]]


def test_arranging_reads_no_data():
    found = arrange(
        torch.empty(2, 9, dtype=torch.bool, device="meta"), torch.empty(2, 3, dtype=torch.long, device="meta"), 7
    )
    assert [part.shape for part in found] == [(2, 7)] * 3


# ------------------------------------------------------------------------------------------- a segment with values


def whole(text: torch.Tensor, positions: torch.Tensor | None = None) -> tuple[torch.Tensor, Segment]:
    """Hidden states [B, L, 2] that hold (item, column), and the segment; what is no text is visual."""
    batch, length = text.shape
    num_visual = (~text).sum(dim=1).tolist()
    prompt = VisualPrompt(~text, [1] * batch, num_visual, num_visual, [length] * batch)
    places = torch.meshgrid(torch.arange(batch), torch.arange(length), indexing="ij")
    hidden = torch.stack(places, dim=-1).float()
    return hidden, Segment.whole(prompt, hidden, None, positions)


def planned_of(segment: Segment, num: list[int], start: int = 1) -> Planned:
    valid = [v - n + left for v, n, left in zip(segment.num_valid, segment.num_visual, num, strict=True)]
    return Planned(start, num, valid, max(valid), num)


@pytest.mark.parametrize("compact_positions", [True, False])
def test_values_stand_in_their_places_and_text_stays(compact_positions):
    hidden, segment = whole(torch.tensor([[True, False, False, False, True, False, True]] * 2))
    slots = torch.tensor([[3, 1, 5], [2, 0, 0]])
    values = torch.tensor([[[7.0, 0], [7, 1], [7, 2]], [[8, 0], [torch.nan] * 2, [torch.nan] * 2]])
    kept = Kept(slots, values, torch.tensor([[True] * 3, [True, False, False]]))
    hidden, short = segment.shorten(hidden, kept, planned_of(segment, [3, 1]), compact_positions)
    assert short.columns[0].tolist() == [0, 3, 1, 4, 5, 6]  # token 1 goes back: it stands behind token 0
    assert hidden[0].tolist() == [[0, 0], [7, 0], [7, 1], [0, 4], [7, 2], [0, 6]]
    assert short.visual.tolist() == [[False, True, True, False, True, False], [False, False, True, False, False, False]]
    assert short.columns[1][short.valid[1]].tolist() == [0, 2, 4, 6]
    assert hidden[1][short.valid[1]].tolist() == [[1, 0], [8, 0], [1, 4], [1, 6]]
    assert not hidden[1][~short.valid[1]].any()  # nor is what stood there, or a value that is none, read
    if compact_positions:
        assert short.positions[0].tolist() == [0, 1, 2, 3, 4, 5]
        assert short.positions[1][short.valid[1]].tolist() == [0, 1, 2, 3]
        assert short.removed.tolist() == [[1], [3]]
    else:
        assert torch.equal(short.positions, short.columns)
        assert short.removed.tolist() == [[0], [0]]


def test_values_take_the_dtype_of_the_hidden_states():
    hidden, segment = whole(torch.tensor([[True, False, False, True]]))
    kept = Kept(torch.tensor([[2]]), torch.tensor([[[1.5, 2.5]]]))
    hidden, short = segment.shorten(hidden.to(torch.bfloat16), kept, planned_of(segment, [1]), True)
    assert hidden.dtype == torch.bfloat16
    assert hidden.tolist() == [[[0, 0], [1.5, 2.5], [0, 3]]]
    assert short.valid is None


@quick
@given(some_items())
def test_values_that_stood_there_change_nothing(items):
    text, slots = items
    slots = slots.sort(dim=1).values
    valid = slots < text.shape[1]
    text = text | ~torch.zeros(len(text), text.shape[1] + 1, dtype=torch.bool).scatter_(1, slots, True)[:, :-1]
    hidden, segment = whole(text)
    if not slots.shape[1]:
        return
    kept = Kept(slots.clamp(max=text.shape[1] - 1), valid=valid)
    values = hidden.take_along_dim(kept.slots.unsqueeze(-1), dim=1)
    planned = planned_of(segment, valid.sum(dim=1).tolist())
    plain, expected = segment.shorten(hidden, kept, planned, True)
    given_values, found = segment.shorten(hidden, kept._replace(values=values), planned, True)
    assert torch.equal(given_values, plain)
    for name in ("columns", "visual", "positions", "removed"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_the_position_of_padding_moves_nothing():
    # Padding may be given any position, here 1 as generate did; an item of one token is followed at position 1.
    hidden, segment = whole(
        torch.tensor([[True, False, False, True], [True] * 4]), torch.tensor([[0, 1, 2, 3], [1, 1, 1, 0]])
    )
    valid = torch.tensor([[True] * 4, [False, False, False, True]])
    segment = replace(segment, valid=valid, num_valid=[4, 1])
    _, short = segment.shorten(
        hidden, Kept(torch.tensor([[1], [0]]), valid=torch.tensor([[True], [False]])), planned_of(segment, [1, 0]), True
    )
    assert short.removed.tolist() == [[1], [0]]
    assert short.positions[1, -1] == 0
