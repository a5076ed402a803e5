"""HiRED's cases. Those with tiles rest on two bugs of the published code: a slow reference, written from the
description, follows them on request; without them it is what the product must equal."""

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods.base import Layout, Views
from vscan.methods.hired import HiRED
from vscan.methods.shared.crops import share_out
from vscan.models.towers import run_tower

from .common import SPAN, inputs_of, model_of, pixels_of, run, same

SIDE = 24


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if index.startswith("func"):
        recorded = load_file(folder / "func.safetensors")
        tensors = {key.removeprefix(f"{name}_"): value for key, value in recorded.items() if key.startswith(name)}
        source = case["input"].split()[0].removesuffix("_cls_heads")
        tensors |= {key.removeprefix(f"{source}_"): value for key, value in recorded.items() if key.startswith(source)}
        (check_tiles_function if "crops" in case else check_one_view)(case, tensors)
    elif case["base"] == "llava15_vscan":
        check_llava(case, load_file(folder / case["file"]))
    else:
        check_next(case, load_file(folder / case["file"]))


def views_of(early: Tensor, scores: Tensor, layout: Layout | None, grid: tuple[int, int] = (SIDE, SIDE)) -> Views:
    """Views with rows alone; `early` [N] is that of the first view."""
    rows = {0: early.expand_as(scores), -2: scores}
    return Views(
        torch.zeros(len(scores), 3, 2, 2), scores.unsqueeze(-1), rows, grid, lambda tokens: tokens, layout=layout
    )


def check_one_view(case: dict, recorded: dict[str, Tensor]) -> None:
    scores = recorded["cls_heads"][:1, :, 1:].sum(dim=1)
    kept = HiRED().encode(views_of(scores[0], scores, None), case["kept"])
    assert kept.slots[0].tolist() == recorded["mask"].nonzero()[:, 0].tolist()


def check_tiles_function(case: dict, recorded: dict[str, Tensor]) -> None:
    early = recorded["first_layer_cls_heads_full"][:, 1:].sum(dim=0)
    scores = recorded["cls_heads"][:, :, 1:].sum(dim=1)
    tiles = tuple(case["grid_shape_returned"])
    if "error" not in case:
        mask = check_published(case, early, scores, tiles, recorded["mask"])
        packed = stitched(recorded["features"], mask, tiles[::-1], case["image_size_hw"])
        assert packed.equal(recorded["packed"])
    check_corrected(case, early, scores, tiles)


def check_published(case: dict, early: Tensor, scores: Tensor, tiles: tuple[int, int], mask: Tensor) -> Tensor:
    """The reference with its bugs is what was recorded, and so is our selection with the recorded quotas."""
    quotas = published_quotas(early, len(scores), case["token_budget_rate"], case["alpha"])
    assert quotas == case["kept_per_crop"] == mask.sum(dim=1).tolist()
    assert by_hand(scores, torch.ones_like(mask), quotas).equal(mask)
    turns = torch.arange(len(scores))
    kept = share_out(scores, torch.ones_like(mask), torch.tensor(quotas), turns, case["n_selected"])
    assert kept.slots[0].tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert kept.valid.all()
    if tiles[1] == 1:  # of one column, strips are tiles: what differs is what floors took, and what full tiles did
        num = int(mask.numel() * case["token_budget_rate"])
        ours = corrected_quotas(early, torch.ones_like(mask), tiles, (SIDE, SIDE), num, case["alpha"])
        assert sum(ours) == num
        assert all(more >= least for more, least in zip(ours, quotas, strict=True))
    return mask


def check_corrected(case: dict, early: Tensor, scores: Tensor, tiles: tuple[int, int]) -> Tensor:
    """The product is the reference without the bugs, and meets the budget; the mask of the former, bool [V, N]."""
    num = int(scores.numel() * case["token_budget_rate"])
    seen = seen_of(tiles, case["image_size_hw"])
    kept = HiRED(case["alpha"]).encode(views_of(early, scores, Layout(tiles, seen)), num)
    mask = by_hand(scores, seen, corrected_quotas(early, seen, tiles, (SIDE, SIDE), num, case["alpha"]))
    assert kept.slots[0][kept.valid[0]].tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert mask.sum() == min(num, int(seen.sum()))
    return mask


def published_quotas(early: Tensor, num_views: int, rate: float, alpha: float) -> list[int]:
    """Floors of fp32 shares, early patches counted in strips of memory, as many as there are tiles (bug B1)."""
    num_tokens, num_tiles = len(early), num_views - 1
    total = int(num_views * num_tokens * rate)
    whole = min(int(total * alpha), num_tokens)
    rest = min(total - whole, num_tiles * num_tokens)
    if rest == 0:
        return [whole] + [0] * num_tiles
    flags = torch.zeros(num_tokens)
    flags[early.topk(int(num_tokens * (1 - alpha))).indices] = 1
    counts = flags.view(num_tiles, -1).sum(dim=1)
    return [whole] + [min(num_tokens, int(share)) for share in rest * counts / counts.sum()]


def corrected_quotas(
    early: Tensor, seen: Tensor, tiles: tuple[int, int], grid: tuple[int, int], num: int, alpha: float
) -> list[int]:
    """Exact shares of patches counted by where they lie, what is over handed out one by one; of each view at most what
    is seen of it."""
    (height, width), (rows, columns), num_tokens = grid, tiles, len(early)
    whole = min(int(num * alpha), num_tokens)
    num_early = int(num_tokens * (1 - alpha)) or num_tokens
    counts = [0] * (rows * columns)
    for patch in sorted(range(num_tokens), key=lambda patch: -early[patch].item())[:num_early]:
        row, column = divmod(patch, width)
        middle = Fraction(2 * row + 1, 2 * height) * rows, Fraction(2 * column + 1, 2 * width) * columns
        counts[int(middle[0]) * columns + int(middle[1])] += 1
    shares = [Fraction((num - whole) * count, num_early) for count in counts]
    room = seen.sum(dim=1).tolist()
    quotas = [whole] + [min(int(share), most) for share, most in zip(shares, room[1:], strict=True)]
    lost = sorted(range(len(shares)), key=lambda tile: -(shares[tile] - int(shares[tile])))
    while sum(quotas) < min(num, sum(room)):
        takers = [tile + 1 for tile in lost if quotas[tile + 1] < room[tile + 1]] or [0]
        for view in takers[: min(num, sum(room)) - sum(quotas)]:
            quotas[view] += 1
    return quotas


def by_hand(scores: Tensor, seen: Tensor, quotas: list[int]) -> Tensor:
    """The best of what is seen of each view, as many as its quota: bool [V, N]."""
    mask = torch.zeros_like(seen)
    for view, quota in enumerate(quotas):
        candidates = [token for token in range(scores.shape[1]) if seen[view, token]]
        mask[view, sorted(candidates, key=lambda token: -scores[view, token].item())[:quota]] = True
    return mask


def unpadded(tiles: tuple[int, int], image_size: list[int]) -> tuple[slice, slice]:
    """Rows and columns of the stitched tiles, in tokens, that show a picture of (height, width) pixels."""
    (height, width), (high, wide) = image_size, (SIDE * tiles[0], SIDE * tiles[1])
    if width / height > wide / high:
        cut = (high - int(height * wide / width)) // 2
        return slice(cut, high - cut), slice(None)
    cut = (wide - int(width * high / height)) // 2
    return slice(None), slice(cut, wide - cut)


def stitched(features: Tensor, mask: Tensor, tiles: tuple[int, int], image_size: list[int]) -> Tensor:
    """What is left of the whole picture, then of the unpadded tiles in raster order.

    Args:
        features: [V, N, D].
        mask: bool [V, N].
        tiles: rows and columns of them; the published code swaps the two (bug B2).
    """

    def grid(views: Tensor) -> Tensor:
        views = views[1:].unflatten(0, tiles).unflatten(2, (SIDE, SIDE))
        return views.transpose(1, 2).flatten(2, 3).flatten(0, 1)[unpadded(tiles, image_size)]

    return torch.cat((features[0][mask[0]], grid(features)[grid(mask)]))


def seen_of(tiles: tuple[int, int], image_size: list[int]) -> Tensor:
    """Tokens that unpadding leaves, bool [V, N]."""
    numbers = torch.arange((1 + tiles[0] * tiles[1]) * SIDE**2).view(-1, SIDE**2)
    seen = torch.zeros(numbers.numel(), dtype=torch.bool)
    left = stitched(numbers.unsqueeze(-1), torch.ones_like(numbers, dtype=torch.bool), tiles, image_size)
    seen[left[:, 0]] = True
    return seen.view_as(numbers)


@lru_cache(maxsize=4)
def rows_of(base: str, image: int) -> tuple[dict[int, Tensor], Tensor]:
    """Rows of the real tower for a recorded picture, summed over heads as published; projected features [V, N, D]."""
    model = model_of(base, tower24=True)
    tower = model.model.vision_tower
    with torch.no_grad():
        seen = run_tower(tower.vision_tower, pixels_of(base, image), tower.select_layer, HiRED().needs)
        features = model.model.mm_projector(seen.hidden[:, 1:])
    heads = tower.vision_tower.config.num_attention_heads
    return {layer: row * heads for layer, row in seen.rows.items()}, features


def check_llava(case: dict, recorded: dict[str, Tensor]) -> None:
    model, pixels, num = (
        model_of(case["base"], tower24=True),
        pixels_of(case["base"], case["image_index"]),
        case["n_selected"],
    )
    rows, _ = rows_of(case["base"], case["image_index"])
    same(rows[-2], recorded["cls_attention_sum"], atol=1e-5)
    ids = inputs_of(case["base"])["input_ids"]
    found = run(model, ids, pixels, method="hired", visual_tokens=num, alpha=case["alpha"])
    assert found.visual(0) == recorded["mask"][0].nonzero()[:, 0].tolist()
    same(found.embeds[SPAN : SPAN + num], recorded["features_to_decoder"])
    same(found.logits[0], recorded["prefill_logits_last"])
    assert found.tokens == recorded["generated"].tolist()
    assert found.lengths == [len(found.embeds)] * len(found.lengths)
    first, last = case["position_first_last"]
    assert found.positions(0, 0) == list(range(first, last + 1))


def check_next(case: dict, recorded: dict[str, Tensor]) -> None:
    model, pixels = model_of(case["base"], tower24=True), pixels_of(case["base"], case["image_index"])
    height, width = case["image_size_hw"]
    columns = model.tile_columns(len(pixels) - 1, (width, height))
    tiles = ((len(pixels) - 1) // columns, columns)
    rows, features = rows_of(case["base"], case["image_index"])
    early, scores = rows[0][0], rows[-2]
    same(scores, recorded["cls_attention_sum"], atol=1e-5)
    same(early, recorded["first_layer_cls_attention_sum_full"], atol=1e-5)
    mask = check_published(case, early, scores, tiles, recorded["mask"])
    same(stitched(features, mask, tiles[::-1], case["image_size_hw"]), recorded["features_to_decoder"])

    mask = check_corrected(case, early, scores, tiles)
    sizes, ids = (width, height), inputs_of(case["base"])["input_ids"]
    options = {"visual_tokens": case["token_budget_rate"], "alpha": case["alpha"], "num_new": 1}
    found = run(model, ids, pixels, [sizes], method="hired", **options)
    with torch.no_grad():
        packed = model.pack_crops(features, sizes, model.model.image_newline)
        left = model.pack_crops(mask.float().unsqueeze(-1), sizes, torch.ones(1))[:, 0] > 0
    same(found.embeds[SPAN : SPAN + int(left.sum())], packed[left])
    assert len(found.embeds) == int(left.sum()) + ids.shape[1] - 1
