"""HiRED's shares and selection equal a slow reference on every grid, and no budget loses a token."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import pictures, tiny_llava, tiny_next, tiny_original
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen_helpers import tiny_qwen
from torch import Tensor

import vscan
from vscan.methods.base import Layout, Schedule, Tower
from vscan.methods.hired import HiRED, shares
from vscan.methods.shared.crops import share_out
from vscan.models.towers import run_tower

sys.path.append(str(Path(__file__).parent))
from rivals.hired import by_hand, corrected_quotas, views_of

quick = settings(deadline=None, derandomize=True, max_examples=150)


@st.composite
def pictures_in_crops(draw) -> dict:
    """Scores with ties, what is seen, a budget and alpha, on grids of every shape."""
    grid, tiles = ((draw(st.integers(1, high)), draw(st.integers(1, high))) for high in (5, 3))
    num_views, num_tokens = 1 + tiles[0] * tiles[1], grid[0] * grid[1]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    most = draw(st.sampled_from([2, 10**6]))

    def scores(*shape: int) -> Tensor:
        return torch.randint(0, most, shape, generator=generator).float()

    seen = torch.rand(num_views, num_tokens, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.1]))
    seen[0] = True  # no packing cuts the whole picture
    early, final = scores(num_tokens), scores(num_views, num_tokens)
    alpha = draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
    num = draw(st.integers(1, num_views * num_tokens))
    return {"early": early, "scores": final, "seen": seen, "tiles": tiles, "grid": grid, "num": num, "alpha": alpha}


@quick
@given(pictures_in_crops())
def test_a_picture_in_crops_keeps_what_the_reference_keeps(given):
    early, scores, seen, tiles, grid, num, alpha = given.values()
    kept = HiRED(alpha).encode(views_of(early, scores, Layout(tiles, seen), grid), num)
    mask = by_hand(scores, seen, corrected_quotas(early, seen, tiles, grid, num, alpha))
    assert kept.slots.shape == kept.valid.shape == (1, num)
    assert kept.slots[0][kept.valid[0]].tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert kept.valid.sum() == min(num, int(seen.sum()))
    assert kept.values is None
    assert kept.slots[0].unique().numel() == num  # fillers take no kept token's place


@pytest.mark.parametrize(
    ("tiles", "corner", "tile"),
    [((2, 2), (0, 0), 0), ((2, 2), (0, 4), 1), ((2, 2), (4, 0), 2), ((2, 2), (4, 4), 3), ((1, 2), (4, 4), 1)],
)
def test_early_patches_count_for_the_tile_that_they_lie_in(tiles, corner, tile):
    early = torch.zeros(8, 8)
    early[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = 1
    quotas, _ = shares(early.flatten(), (8, 8), tiles, 0.25, 40)
    assert quotas.tolist() == [40 * (number == tile) for number in range(tiles[0] * tiles[1])]


def test_what_floors_take_goes_to_the_tiles_that_lost_most():
    early = torch.zeros(4, 4)
    early[:2, :2], early[0, 2:], early[2, 0] = 1, 1, 1  # 4, 2, 1 and 0 of 7
    quotas, turns = shares(early.flatten(), (4, 4), (2, 2), 7 / 16, 10)
    assert quotas.tolist() == [5, 2, 1, 0]  # 5.71, 2.86, 1.43
    assert turns.tolist() == [1, 0, 2, 3]


def test_what_a_tile_cannot_take_goes_to_the_others_in_turn_and_then_to_the_whole_picture():
    scores = torch.arange(12.0).flip(0).view(3, 4)
    seen = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 4])
    expected = {5: [0, 4, 5, 8, 9], 7: [0, 4, 5, 8, 9, 10, 11], 8: [0, 1, 4, 5, 8, 9, 10, 11]}
    for num, slots in expected.items():
        kept = share_out(scores, seen, torch.tensor([1, 4, 0]), torch.tensor([12, 1, 0]), num)
        assert kept.slots[0].tolist() == slots
        assert kept.valid.all()


def test_a_view_alone_keeps_its_best_and_the_earlier_of_equals():
    scores = torch.randint(0, 9, (4, 60), generator=torch.Generator().manual_seed(0)).float()
    kept = HiRED().encode(views_of(scores[0], scores, None), 20)
    assert kept.valid is None
    for view in range(4):
        best = sorted(range(60), key=lambda token: (-scores[view, token].item(), token))[:20]
        assert kept.slots[view].tolist() == sorted(best)
        alone = HiRED(0.1).encode(views_of(scores[0], scores[view : view + 1], None), 20)
        assert alone.slots[0].equal(kept.slots[view])


@pytest.mark.parametrize("tiles", [None, (2, 2), (3, 1)])
def test_selection_reads_nothing_from_the_device(tiles):
    num_views = 3 if tiles is None else 1 + tiles[0] * tiles[1]
    layout = None if tiles is None else Layout(tiles, torch.empty(num_views, 25, dtype=torch.bool, device="meta"))
    scores = torch.empty(num_views, 25, device="meta")
    kept = HiRED().encode(views_of(scores[0], scores, layout, (5, 5)), 11)
    assert kept.slots.shape == ((1 if tiles else num_views), 11)
    assert kept.slots.device.type == "meta"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("original", [False, True])
def test_crops_of_a_picture_share_one_budget_to_the_last_token(original, alpha):
    """Two pictures, one wide and one tall, in one call: as if alone, and no token is lost to padding that is cut."""
    model = tiny_original(tiles=True) if original else tiny_next()
    sizes, pixels = [(20, 64), (60, 20)], torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def encode(chosen: list[int]):
        if original:
            return model.embed_images([pixels[i] for i in chosen], [sizes[i][::-1] for i in chosen])
        return model.model.get_image_features(pixels[chosen], torch.tensor([sizes[i] for i in chosen]))

    num_newlines = [newlines_of(model, size, original) for size in sizes]
    shown = [len(image) - lines for image, lines in zip(encode([0, 1]).pooler_output, num_newlines, strict=True)]
    assert shown == [64 + 16 * 6] * 2  # of 192, two rows or columns of both tiles are cut
    for num in (20, 45, 60):
        with vscan.reduce(model, "hired", num, alpha=alpha):
            together = encode([0, 1])
            for index, kept in enumerate(together.kept):
                assert kept.sum() == min(3 * num, shown[index]) + num_newlines[index]
                assert encode([index]).kept[0].equal(kept)


def newlines_of(model, size: tuple[int, int], original: bool) -> int:
    """How many newlines a picture of two tiles gets: numbers of channel 1, of which newlines alone have a 1."""
    crops, newline = torch.zeros(3, 64, 1), torch.ones(1)
    if original:
        return int(model.pack_crops(crops, size[::-1], newline).sum())
    packed, _ = model.model.pack_image_features([crops], torch.tensor([size]), "default", newline)
    return int(packed[0].sum())


def test_the_rows_of_two_layers_rank():
    model = tiny_llava()
    tower, pixels = model.model.vision_tower, pictures(model, 3)
    with torch.no_grad():
        rows = run_tower(tower, pixels, -2, HiRED(final_layer=3).needs).rows
    with vscan.reduce(model, "hired", 30, final_layer=3):
        kept = model.model.get_image_features(pixels).kept
    assert torch.stack(kept).equal(by_hand(rows[3], torch.ones_like(rows[3], dtype=torch.bool), [30] * 3))


def test_what_cannot_be_is_refused():
    assert HiRED().schedule(64, 32, 576) == Schedule(64)
    assert HiRED().needs.group == "image"
    assert [field.name for field in fields(HiRED)] == ["alpha", "early_layer", "final_layer"]
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], got 1.5"):
        HiRED(1.5)
    with pytest.raises(ValueError, match="HiRED: expected one of 4 vision layers, got 4"):
        replace(HiRED(), early_layer=4).check(Tower(4, 3, 576, 64))
    with pytest.raises(ValueError, match=r"^method 'hired': expected a vision encoder with a \[CLS\] token"):
        vscan.apply(tiny_qwen(), "hired", 0.5)
