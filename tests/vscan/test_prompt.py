"""Where a batch of prompts holds its visual tokens, before and after they are dropped: by hand and against lists."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vscan.kept import Kept, Planned
from vscan.masks import all_true, compact, padding_mask
from vscan.plan import Plan
from vscan.prompt import Segment, VisualPrompt, placed

quick = settings(deadline=None, derandomize=True)


def flags(*rows: str, mark: str = "V") -> torch.Tensor:
    """Rows of letters to a bool tensor: where the letter is `mark`."""
    return torch.tensor([[letter in mark for letter in row] for row in rows])


def numbers(tensor: torch.Tensor) -> list:
    return tensor.to(torch.int).tolist()


# -------------------------------------------------------------------------------------------------------- compact


def compact_by_hand(keep: list[bool], length: int) -> tuple[list[int], list[bool]]:
    kept = [column for column, stays in enumerate(keep) if stays]
    fillers = [column for column, stays in enumerate(keep) if not stays][: length - len(kept)]
    columns = sorted(kept + fillers)
    return columns, [column in kept for column in columns]


@settings(quick, max_examples=120)
@given(batch=st.integers(1, 4), width=st.integers(1, 30), seed=st.integers(0, 10**6), data=st.data())
def test_compacting_keeps_the_order_and_marks_fillers(batch, width, seed, data):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(batch, width, generator=generator) < torch.rand(batch, 1, generator=generator)
    length = data.draw(st.integers(int(keep.sum(dim=1).max()), width))
    columns, valid = compact(keep, length)
    assert columns.shape == valid.shape == (batch, length)
    assert columns.dtype == torch.long
    by_hand = [compact_by_hand(row, length) for row in keep.tolist()]
    assert columns.tolist() == [row for row, _ in by_hand]
    assert valid.tolist() == [row for _, row in by_hand]


def test_compacting_by_hand():
    keep = flags("xx..x.", "......", "..x...", "xx...x", mark="x")
    columns, valid = compact(keep, 3)
    assert columns.tolist() == [[0, 1, 4], [0, 1, 2], [0, 1, 2], [0, 1, 5]]
    assert numbers(valid) == [[1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 1]]


def test_compacting_to_nothing():
    columns, valid = compact(torch.zeros(2, 5, dtype=torch.bool), 0)
    assert columns.shape == valid.shape == (2, 0)


def test_no_token_is_doubled_where_more_columns_are_asked_for_than_there_are():
    columns, valid = compact(flags("xx.", "xxx", mark="x"), 5)
    assert [row[flag].tolist() for row, flag in zip(columns, valid, strict=True)] == [[0, 1], [0, 1, 2]]


# --------------------------------------------------------------------------------------------------- VisualPrompt


def read(visual, mask, tokens_per_view, kept_per_view, num_views):
    """Images that are one view each, all of one size."""
    return VisualPrompt.read(visual, mask, [tokens_per_view] * num_views, [1] * num_views, [kept_per_view] * num_views)


def test_images_of_several_views_and_sizes_go_to_the_rows_that_hold_them():
    visual = flags("tVVVVVVVt", "ttttttttt", "VVVtVVttt")
    found = VisualPrompt.read(visual, None, [5, 2, 3, 2], [3, 1, 2, 1], None)
    assert (found.num_views, found.num_visual) == ([4, 0, 3], [7, 0, 5])
    assert found.num_kept is None
    with pytest.raises(ValueError, match=r"placeholders of images of \[5, 3, 4\] tokens, got \[7, 0, 5\] per row"):
        VisualPrompt.read(visual, None, [5, 3, 4], [1, 1, 1], None)


def test_counts_of_every_row_are_read():
    visual = flags("ppttVVVVtt", "tVVVVVVVVt", "pppppttttt")
    mask = ~flags("ppttVVVVtt", "tVVVVVVVVt", "pppppttttt", mark="p")
    found = read(visual, mask, tokens_per_view=4, kept_per_view=3, num_views=3)
    assert found.num_views == [1, 2, 0]
    assert found.num_visual == [4, 8, 0]
    assert found.num_kept == [3, 6, 0]
    assert found.num_valid == [8, 10, 5]
    assert found.visual is visual
    assert not found.entered


def test_without_a_mask_every_column_is_a_token():
    found = read(flags("ttVV", "tVVt"), None, tokens_per_view=2, kept_per_view=1, num_views=2)
    assert (found.num_views, found.num_visual, found.num_kept, found.num_valid) == ([1, 1], [2, 2], [1, 1], [4, 4])


def test_which_tokens_are_left_goes_to_the_placeholders_in_order():
    visual = flags("tVVtV", "ttVVt")
    kept = torch.tensor([True, False, True, False, True])
    found = VisualPrompt.read(visual, None, [3, 2], [1, 1], [2, 1], kept)
    assert torch.equal(found.kept, flags("txttx", "tttxt", mark="x"))
    assert torch.equal(found.repeat(2).kept, found.kept.repeat_interleave(2, dim=0))
    other = VisualPrompt(~visual, [0, 0], [0, 0], None, [5, 5])
    assert torch.equal(found.joined(other).kept, found.kept | ~visual)
    assert other.joined(other).kept is None


def test_more_or_fewer_tokens_than_placeholders_are_out_of_no_range():
    visual = flags("tVVt")
    for number in (1, 5):
        assert placed(torch.ones(number, dtype=torch.bool), visual).tolist() == visual.tolist()


def test_one_row_is_counted_without_reading_it():
    visual = torch.empty(1, 20, dtype=torch.bool, device="meta")  # reading a value of a meta tensor is an error
    found = read(visual, None, tokens_per_view=4, kept_per_view=3, num_views=2)
    assert (found.num_views, found.num_visual, found.num_kept, found.num_valid) == ([2], [8], [6], [20])


def test_one_row_with_padding_is_counted():
    visual, mask = flags("pptVVVVVVVVt"), ~flags("pptVVVVVVVVt", mark="p")
    found = read(visual, mask, tokens_per_view=4, kept_per_view=3, num_views=2)
    assert (found.num_views, found.num_visual, found.num_kept, found.num_valid) == ([2], [8], [6], [10])
    with pytest.raises(ValueError, match=r"expected the placeholders of images of \[4\] tokens, got \[8\] per row"):
        read(visual, mask, tokens_per_view=4, kept_per_view=3, num_views=1)


@pytest.mark.parametrize(
    ("rows", "num_views", "got"),
    [
        (("VVVt", "VVVV"), 2, "[3, 4]"),
        (("VVVVVt", "VVVVtt"), 2, "[5, 4]"),
        (("VVVVtt", "VVVVtt"), 3, "[4, 4]"),
        (("VVVVtt", "VVVVtt"), 1, "[4, 4]"),
        (("VVVttt", "VVVVVt"), 2, "[3, 5]"),  # eight in all, but in no row a whole number of views
    ],
)
def test_placeholders_that_fit_no_number_of_images_are_refused(rows, num_views, got):
    with pytest.raises(ValueError, match="placeholders") as caught:
        read(flags(*rows), None, tokens_per_view=4, kept_per_view=2, num_views=num_views)
    assert str(caught.value) == f"expected the placeholders of images of {[4] * num_views} tokens, got {got} per row"


@quick
@given(
    views=st.lists(st.integers(0, 3), min_size=2, max_size=5),
    tokens_per_view=st.integers(1, 5),
    padding=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    data=st.data(),
)
def test_any_batch_is_counted(views, tokens_per_view, padding, data):
    kept = data.draw(st.integers(1, tokens_per_view))
    length = max(views) * tokens_per_view + 6
    pads = padding[: len(views)]
    rows = [
        ("p" * pad + "V" * view * tokens_per_view).ljust(length, "t") for pad, view in zip(pads, views, strict=True)
    ]
    found = read(flags(*rows), ~flags(*rows, mark="p"), tokens_per_view, kept, sum(views))
    assert found.num_views == views
    assert found.num_visual == [row.count("V") for row in rows]
    assert found.num_kept == [kept * view for view in views]
    assert found.num_valid == [length - pad for pad in pads]


def test_repeating_puts_copies_beside_each_other():
    visual = flags("ttVVVV", "VVtttt")
    found = VisualPrompt(visual, [2, 1], [4, 2], [2, 1], [6, 5])
    repeated = found.repeat(3)
    assert numbers(repeated.visual) == [[0, 0, 1, 1, 1, 1]] * 3 + [[1, 1, 0, 0, 0, 0]] * 3
    assert repeated.num_views == [2, 2, 2, 1, 1, 1]
    assert repeated.num_visual == [4, 4, 4, 2, 2, 2]
    assert repeated.num_kept == [2, 2, 2, 1, 1, 1]
    assert repeated.num_valid == [6, 6, 6, 5, 5, 5]
    assert found.num_views == [2, 1]
    assert found.repeat(1) is found
    unknown = replace(found, num_kept=None).repeat(2)
    assert (unknown.num_views, unknown.num_kept) == ([2, 2, 1, 1], None)


# --------------------------------------------------------------------------------------------------- padding_mask


def test_the_padding_of_a_mask_of_two_dimensions():
    assert padding_mask(None, 4) is None
    given_mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for dtype in (torch.long, torch.bool, torch.float32):
        found = padding_mask(given_mask.to(dtype), 4)
        assert found.dtype == torch.bool
        assert numbers(found) == [[0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_the_padding_of_a_mask_of_four_dimensions(dtype):
    # As generate builds it for a static cache of 7 columns: causal, the first column of row 1 is padding.
    allowed = torch.ones(2, 1, 4, 7, dtype=torch.bool).tril()
    allowed[1, :, :, 0] = False
    mask = allowed
    if dtype != torch.bool:
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    found = padding_mask(mask, 4)
    assert found.dtype == torch.bool
    assert numbers(found) == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_mask_masks_nothing_only_where_every_column_is_a_token():
    assert all_true(torch.ones(2, 3, dtype=torch.bool))
    assert not all_true(torch.tensor([[True, True], [True, False]]))


# ----------------------------------------------------------------------------------------- a segment, made by hand

# Two prompts: the second is padded at the left, and its image has four tokens as well.
LEFT = ("ttVVVVtt", "ppVVVVtt")


def whole(rows=LEFT, kept_per_view=4, tokens_per_view=4, positions=None, masked=True):
    """Hidden states [B, L, 2] that hold (row, column), and the segment of the whole prompt."""
    visual = flags(*rows)
    mask = ~flags(*rows, mark="p") if masked else None
    num_views = [row.count("V") // tokens_per_view for row in rows]
    prompt = VisualPrompt(
        visual,
        num_views,
        [number * tokens_per_view for number in num_views],
        [number * kept_per_view for number in num_views],
        [len(row) - row.count("p") for row in rows],
    )
    batch, length = visual.shape
    row_of, column_of = torch.meshgrid(torch.arange(batch), torch.arange(length), indexing="ij")
    hidden = torch.stack((row_of, column_of), dim=-1).float()
    return hidden, Segment.whole(prompt, hidden, mask, positions)


def shorten(segment, hidden, kept, num_kept, start, compact_positions):
    """Shorten a segment to the columns of a mask, bool [B, S], of which every item has so many."""
    slots, valid = compact(kept, max(num_kept))
    num_valid = [
        valid - visual + left
        for valid, visual, left in zip(segment.num_valid, segment.num_visual, num_kept, strict=True)
    ]
    kept = Kept(slots, valid=None if min(num_kept) == max(num_kept) else valid)
    return segment.shorten(hidden, kept, Planned(start, num_kept, num_valid, max(num_valid)), compact_positions)


def drop_empty(segment, hidden, compact_positions):
    """Drop what the vision stage left without a token, as the decoder does."""
    whole = Plan.of(SimpleNamespace(layers=(), num_layers=1), segment.prompt).stages[0]
    return segment.drop_empty(hidden, whole, compact_positions)


def test_the_whole_prompt_as_a_segment():
    hidden, segment = whole()
    assert segment.start == 0
    assert segment.length == hidden.shape[1] == 8
    assert segment.columns.tolist() == [list(range(8))] * 2
    assert segment.positions.tolist() == [list(range(8))] * 2
    assert torch.equal(segment.visual, flags(*LEFT))
    assert torch.equal(segment.valid, ~flags(*LEFT, mark="p"))
    assert segment.removed.tolist() == [[0], [0]]
    assert (segment.num_visual, segment.num_valid) == ([4, 4], [8, 6])


def test_the_whole_prompt_at_positions_of_its_own():
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 0, 1, 2, 3, 4, 5]])
    _, segment = whole(positions=positions, masked=False)
    assert torch.equal(segment.positions, positions)
    assert segment.valid is None


def test_shortening_by_hand_with_compact_positions():
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 0, 1, 2, 3, 4, 5]])
    hidden, segment = whole(positions=positions)
    kept = flags("..x..x..", "...xx...", mark="x")
    hidden, short = shorten(segment, hidden, kept, [2, 2], start=3, compact_positions=True)
    assert short.start == 3
    assert short.columns.tolist() == [[0, 1, 2, 5, 6, 7], [0, 1, 3, 4, 6, 7]]
    assert numbers(short.valid) == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert numbers(short.visual) == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert short.positions[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert short.positions[1, 2:].tolist() == [0, 1, 2, 3]
    assert short.removed.tolist() == [[2], [2]]
    assert (short.num_visual, short.num_valid) == ([2, 2], [6, 4])
    assert hidden[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 5], [0, 6], [0, 7]]
    assert hidden[1].tolist() == [[0, 0], [0, 0], [1, 3], [1, 4], [1, 6], [1, 7]]


def test_shortening_by_hand_with_original_positions():
    hidden, segment = whole(("ttVVVVtt",), masked=False)
    hidden, short = shorten(segment, hidden, flags("..x..x..", mark="x"), [2], start=3, compact_positions=False)
    assert short.positions.tolist() == [[0, 1, 2, 5, 6, 7]]
    assert short.removed.tolist() == [[0]]
    assert short.valid is None
    assert hidden[0, :, 1].tolist() == [0, 1, 2, 5, 6, 7]


def test_rows_that_keep_unequal_numbers_are_filled_up_and_masked():
    hidden, segment = whole(("tVVVVVVt", "tVVVttt?", "ttttttt?"), tokens_per_view=3, masked=False)
    kept = flags(".x.xxx..", ".x......", "........", mark="x")
    hidden, short = shorten(segment, hidden, kept, [4, 1, 0], start=2, compact_positions=True)
    assert (short.num_visual, short.num_valid) == ([4, 1, 0], [6, 6, 8])
    assert short.columns.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert numbers(short.valid) == [[1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1, 1, 1], [1] * 8]
    assert short.positions.masked_select(short.valid).tolist() == [0, 1, 2, 3, 4, 5, *range(6), *range(8)]
    assert short.removed.tolist() == [[2], [2], [0]]
    assert (hidden[~short.valid] == 0).all()


def test_one_padded_row_becomes_no_longer_than_its_tokens():
    visual, mask = flags("pptVVVVt"), ~flags("pptVVVVt", mark="p")
    prompt = read(visual, mask, tokens_per_view=4, kept_per_view=4, num_views=1)
    segment = Segment.whole(prompt, torch.zeros(1, 8, 2), mask, None)
    _, short = shorten(segment, torch.zeros(1, 8, 2), flags("....x...", mark="x"), [1], 1, True)
    assert short.columns.tolist() == [[2, 4, 7]]
    assert short.valid is None or short.valid.all()


def test_a_mask_that_masks_nothing_is_none():
    _, segment = whole(("tVVVVt", "VVVVtt"), masked=True)
    assert segment.valid is None
    assert segment.query(6)[1] is None


def emptied(hidden, segment, *columns):
    """The same prompt with no token at these (row, column); what they hold must not matter."""
    kept = segment.visual.clone()
    for row, column in columns:
        kept[row, column], hidden[row, column] = False, torch.nan
    return hidden, replace(segment, prompt=replace(segment.prompt, kept=kept))


def test_placeholders_without_a_token_are_dropped_before_layer_0():
    hidden, segment = emptied(*whole(kept_per_view=3), (0, 3), (1, 5))
    hidden, short = drop_empty(segment, hidden, compact_positions=True)
    assert short.start == 0
    assert short.columns.tolist() == [[0, 1, 2, 4, 5, 6, 7], [0, 1, 2, 3, 4, 6, 7]]
    assert numbers(short.valid) == [[1] * 7, [0, 0, 1, 1, 1, 1, 1]]
    assert short.num_visual == [3, 3]
    assert short.removed.tolist() == [[1], [1]]
    assert not hidden.isnan().any()


def test_positions_of_the_empty_may_stay_empty():
    hidden, segment = emptied(*whole(("tVVVVt",), kept_per_view=2, masked=False), (0, 1), (0, 4))
    _, short = drop_empty(segment, hidden, compact_positions=False)
    assert short.positions.tolist() == [[0, 2, 3, 5]]
    assert short.removed.tolist() == [[0]]


def test_how_many_are_left_is_read_where_that_depends_on_the_picture():
    hidden, segment = emptied(*whole(("tVVVVt", "VVVVtt"), masked=False), (0, 2), (0, 3), (1, 3))
    segment = replace(segment, prompt=replace(segment.prompt, num_kept=None))
    hidden, short = drop_empty(segment, hidden, compact_positions=True)
    assert (short.num_visual, short.num_valid) == ([2, 3], [4, 5])
    assert short.columns[short.valid].tolist() == [0, 1, 4, 5, 0, 1, 2, 4, 5]
    assert not hidden.isnan().any()


def test_a_token_that_is_left_may_hold_anything():
    hidden, segment = emptied(*whole(("tVVVVt",), kept_per_view=3, masked=False), (0, 2))
    hidden[0, 1] = torch.nan
    _, short = drop_empty(segment, hidden, compact_positions=True)
    assert (short.columns.tolist(), short.num_visual) == ([[0, 1, 3, 4, 5]], [3])


def test_nothing_is_dropped_where_the_vision_stage_kept_all():
    hidden, segment = whole()
    same, short = drop_empty(segment, hidden, compact_positions=True)
    assert same is hidden
    assert short is segment


def test_fillers_hold_no_nan():
    hidden, segment = emptied(
        *whole(("tVVVVttt", "tttttttt"), kept_per_view=1, masked=False), *((0, column) for column in (2, 3, 4))
    )
    hidden, short = drop_empty(segment, hidden, compact_positions=True)
    assert short.length == 8
    assert numbers(short.valid) == [[1, 1, 0, 0, 0, 1, 1, 1], [1] * 8]
    assert not hidden.isnan().any()


def test_the_last_token_of_the_prompt_asks():
    _, segment = whole()
    query, allowed = segment.query(8)
    assert query.tolist() == [7, 7]
    assert numbers(allowed) == [[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]]


def test_the_last_token_of_a_prompt_that_is_padded_at_the_right_asks():
    _, segment = whole(("ttVVVVtt", "VVVVtppp"))
    query, allowed = segment.query(8)
    assert query.tolist() == [7, 4]
    assert numbers(allowed) == [[1] * 8, [1, 1, 1, 1, 1, 0, 0, 0]]


def test_without_padding_it_sees_all():
    _, segment = whole(("ttVVVVtt", "VVVVtttt"), masked=False)
    query, allowed = segment.query(8)
    assert query.tolist() == [7, 7]
    assert allowed is None
    assert segment.query(9)[1] is None


def test_an_answer_under_way_does_not_ask():
    _, segment = whole(("ttVVVVaaa", "VVVVttaaa"), masked=False)
    query, allowed = segment.query(6)
    assert query.tolist() == [5, 5]
    assert numbers(allowed) == [[1, 1, 1, 1, 1, 1, 0, 0, 0]] * 2
    _, segment = whole(("ttVVVVaaa", "ppVVVVaaa"))
    query, allowed = segment.query(6)
    assert query.tolist() == [5, 5]
    assert numbers(allowed) == [[1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0]]


def test_the_query_moves_with_its_token():
    hidden, segment = whole(("ttVVVVtaa", "ppVVVVtaa"))
    kept = flags("..x......", ".....x...", mark="x")
    _, short = shorten(segment, hidden, kept, [1, 1], start=1, compact_positions=True)
    query, allowed = short.query(7)
    assert short.columns.gather(1, query.unsqueeze(1)).tolist() == [[6], [6]]
    assert numbers(allowed) == [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]


def test_visual_tokens_are_told_by_their_place_among_all_of_the_prompt():
    hidden, segment = whole(("tVVttVVt", "ppppVVVV"))
    assert segment.visual_indices(0) == segment.visual_indices(1) == [0, 1, 2, 3]
    kept = flags("..x..xx.", "....x..x", mark="x")
    hidden, short = shorten(segment, hidden, kept, [3, 2], start=1, compact_positions=True)
    assert (short.visual_indices(0), short.visual_indices(1)) == ([1, 2, 3], [0, 3])
    kept = short.visual & (short.columns >= 6)
    _, shorter = shorten(short, hidden, kept, [1, 1], start=2, compact_positions=True)
    assert (shorter.visual_indices(0), shorter.visual_indices(1)) == ([3], [3])


def test_a_segment_moves_to_a_device_with_all_its_tensors():
    _, segment = whole()
    assert segment.to(torch.device("cpu")) is segment
    moved = segment.to(torch.device("meta"))
    tensors = (moved.columns, moved.valid, moved.visual, moved.positions, moved.removed)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.start, moved.prompt, moved.num_visual, moved.num_valid) == (0, segment.prompt, [4, 4], [8, 6])
    assert replace(segment, valid=None).to(torch.device("meta")).valid is None


# --------------------------------------------------------------------------------- any segment, against plain lists


@dataclass(frozen=True)
class Token:
    """One column of a prompt that is no padding, as a row of a plain list holds it."""

    column: int
    visual: bool
    position: int


@st.composite
def some_prompt(draw):
    """Rows of letters: padding at the left or at the right or none, text and visual tokens anywhere."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2, 16))
    side = draw(st.sampled_from(["left", "right", None]))
    rows = []
    for _ in range(batch):
        pads = draw(st.integers(0, length - 1)) if side else 0
        tokens = draw(st.text("tV", min_size=length - pads, max_size=length - pads))
        rows.append("p" * pads + tokens if side == "left" else tokens + "p" * pads)
    return tuple(rows)


def kept_of(segment, generator):
    """A random part of a segment's visual tokens, and how many that are."""
    kept = segment.visual & (torch.rand(segment.visual.shape, generator=generator) < 0.5)
    return kept, kept.sum(dim=1).tolist()


def check(segment, hidden, lists, dropped, batch):
    """Whether a segment says what the plain lists say."""
    length = max(map(len, lists))
    assert segment.length == length
    assert hidden.shape[:2] == (batch, length)
    valid = torch.ones(batch, length, dtype=torch.bool) if segment.valid is None else segment.valid
    positions = segment.positions.expand(batch, -1)
    for row, tokens in enumerate(lists):
        held = [
            Token(int(segment.columns[row, i]), bool(segment.visual[row, i]), int(positions[row, i]))
            for i in valid[row].nonzero().flatten().tolist()
        ]
        assert held == tokens
        assert hidden[row][valid[row]].tolist() == [[row, token.column] for token in tokens]
    assert not hidden.isnan().any()
    assert not (segment.visual & ~valid).any()
    assert segment.num_visual == [sum(token.visual for token in tokens) for tokens in lists]
    assert segment.num_valid == [len(tokens) for tokens in lists]
    assert segment.removed.flatten().tolist() == dropped


@settings(quick, max_examples=100)
@given(rows=some_prompt(), compact_positions=st.booleans(), from_mask=st.booleans(), seed=st.integers(0, 10**6))
def test_dropping_twice_leaves_every_row_as_a_plain_list_would(rows, compact_positions, from_mask, seed):
    generator = torch.Generator().manual_seed(seed)
    masked = any("p" in row for row in rows)
    mask = ~flags(*rows, mark="p")
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0) if from_mask else None
    hidden, segment = whole(rows, tokens_per_view=1, positions=positions, masked=masked)
    batch, width = len(rows), len(rows[0])
    at = positions.tolist() if from_mask else [list(range(width))] * batch
    lists = [
        [Token(column, letter == "V", at[row][column]) for column, letter in enumerate(letters) if letter != "p"]
        for row, letters in enumerate(rows)
    ]
    dropped = [0] * batch
    for start in (1, 2):
        kept, num_kept = kept_of(segment, generator)
        kept_columns = [segment.columns[row][kept[row]].tolist() for row in range(batch)]
        gone = segment.visual & ~kept
        hidden = hidden.masked_fill(gone.unsqueeze(-1), torch.nan)  # nothing may be read of what is dropped
        hidden, segment = shorten(segment, hidden, kept, num_kept, start, compact_positions)
        for row, tokens in enumerate(lists):
            left = []
            for token in tokens:
                if token.visual and token.column not in kept_columns[row]:
                    continue
                before = sum(t.visual and t.column < token.column for t in tokens)
                kept_before = sum(t.visual for t in left)
                shift = before - kept_before if compact_positions else 0
                left.append(replace(token, position=token.position - shift))
            dropped[row] += (len(tokens) - len(left)) * compact_positions
            lists[row] = left
        if not any(lists):
            return  # every row was nothing but dropped tokens
        assert segment.start == start
        check(segment, hidden, lists, dropped, batch)
        if compact_positions and (from_mask or not masked):
            assert all([token.position for token in tokens] == list(range(len(tokens))) for tokens in lists)


@settings(quick, max_examples=100)
@given(rows=some_prompt(), seed=st.integers(0, 10**6), data=st.data())
def test_the_query_is_the_last_token_of_the_prompt_and_sees_all_before_it(rows, seed, data):
    hidden, segment = whole(rows, tokens_per_view=1, masked=any("p" in row for row in rows))
    kept, num_kept = kept_of(segment, torch.Generator().manual_seed(seed))
    hidden, segment = shorten(segment, hidden, kept, num_kept, 1, True)
    num_columns = data.draw(st.integers(1, len(rows[0]) + 2))
    valid = torch.ones_like(segment.visual) if segment.valid is None else segment.valid
    may_ask = [
        [i for i in range(segment.length) if valid[row, i] and segment.columns[row, i] < num_columns]
        for row in range(len(rows))
    ]
    assume(all(may_ask))
    query, allowed = segment.query(num_columns)
    assert query.dtype == torch.long
    assert query.tolist() == [columns[-1] for columns in may_ask]
    allowed = torch.ones_like(segment.visual) if allowed is None else allowed
    assert [row.nonzero().flatten().tolist() for row in allowed] == may_ask


@settings(quick, max_examples=50)
@given(rows=some_prompt(), seed=st.integers(0, 10**6))
def test_the_last_column_stays_last_where_it_is_text(rows, seed):
    # generate reads the next token off the last column.
    rows = tuple(row[:-1] + "t" for row in rows)
    assume(not any("p" in row.lstrip("p") for row in rows))
    hidden, segment = whole(rows, tokens_per_view=1, masked=any("p" in row for row in rows))
    kept, num_kept = kept_of(segment, torch.Generator().manual_seed(seed))
    _, short = shorten(segment, hidden, kept, num_kept, 1, True)
    assert (short.columns[:, -1] == len(rows[0]) - 1).all()
    assert short.valid is None or short.valid[:, -1].all()


@pytest.mark.parametrize("masked", [True, False])
def test_shortening_reads_no_data(masked):
    # Reading a value of a meta tensor is an error.
    visual = torch.empty(2, 12, dtype=torch.bool, device="meta")
    prompt = VisualPrompt(visual, [1, 1], [4, 4], [4, 4], [12, 10])
    hidden = torch.empty(2, 12, 8, device="meta")
    segment = Segment.whole(prompt, hidden, torch.empty_like(visual) if masked else None, None)
    query, _ = segment.query(12)
    assert query.shape == (2,)
    hidden, short = shorten(segment, hidden, torch.empty_like(visual), [3, 1], 2, True)
    assert hidden.shape == (2, 11, 8)
    assert short.columns.shape == short.valid.shape == short.visual.shape == short.positions.shape == (2, 11)
