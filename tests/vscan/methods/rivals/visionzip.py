"""VisionZip's cases: given tower outputs, whole models, crop by crop. The published layout of a picture in tiles, which
is not ours, is a reference here."""

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods import METHODS
from vscan.methods.base import Kept, Views
from vscan.methods.visionzip import VisionZip, contextual, select

from .common import NEXT, SPAN, check_answer, crops_of, inputs_of, model_of, pixels_of, run, same

SIDE = 24


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if index.startswith("func"):
        recorded = load_file(folder / "func.safetensors")
        (check_stitching if "tiles" in case else check_function)(name, case, recorded)
    else:
        recorded = load_file(folder / case["file"])
        (check_next if case["base"] == NEXT else check_llava)(case, recorded)


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    hidden = recorded[f"{case['input']}_hidden"]
    if "error" in case:  # more than there are: no reduction
        assert case["dominant_argument"] + case["contextual"] > hidden.shape[1]
        return
    scores = recorded[f"{case['input']}_cls_attention_heads"].sum(dim=1)[:, 1:]
    keys = recorded[f"{case['input']}_key_metric"][:, 1:]
    dominant, targets, group = select(scores, keys, case["dominant_patches"], case["contextual"])
    check_dominant(dominant, recorded[f"{name}_all_indices"])
    patches = hidden[:, 1:]
    kept = patches.take_along_dim(dominant.unsqueeze(-1), dim=1)
    found = torch.cat((hidden[:, :1], kept, contextual(patches, targets, group)), dim=1)
    same(found, recorded[f"{name}_out"], 1e-5)
    num = case["tokens"]
    if num < patches.shape[1] and targets.shape[1] < num:  # and so by the method, which takes a share
        method = VisionZip((case["contextual"] + 0.5) / num)
        views = Views(patches, patches, {-2: scores}, (1, patches.shape[1]), lambda tokens: tokens, hidden[:, 0])
        views.keys[-2] = recorded[f"{case['input']}_key_metric"]
        same(method.encode(views, num).values, recorded[f"{name}_out"], 1e-5)


def check_dominant(dominant: Tensor, indices: Tensor) -> None:
    """Those recorded: 0 is [CLS], then patches by descending score."""
    assert (indices[:, 0] == 0).all()
    assert dominant.equal(indices[:, 1:].sort(dim=1).values - 1)


def stitched(tiles: Tensor, dominant: Tensor, columns: int) -> Tensor:
    """Published: dominant patches of all tiles in raster order of their grid, then [CLS] and contextual ones of each.

    Args:
        tiles: [tiles, 1 + dominant + contextual, D], as a tile lies.
        dominant: long [tiles, dominant].
    """
    number = torch.arange(len(tiles)).unsqueeze(1)
    row = number // columns * SIDE + dominant // SIDE
    column = number % columns * SIDE + dominant % SIDE
    order = (row * columns * SIDE + column).flatten().argsort()
    last = 1 + dominant.shape[1]
    return torch.cat((tiles[:, 1:last].flatten(0, 1)[order], tiles[:, 0], tiles[:, last:].flatten(0, 1)))


def check_stitching(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    kept = recorded[f"{name}_keep_idx"]
    columns = int(name.split("_w")[1].split("h")[0])
    tiles = recorded["stitch_tile_features"][: case["tiles"]]
    order = kept[:, 1:].sort(dim=1).values - 1
    assert stitched(tiles, order, columns).equal(recorded[f"{name}_out"])


def method_of(case: dict) -> dict:
    """The share that gives so many contextual tokens; the default one where it is that."""
    num, wanted = case["tokens_per_crop"], case["contextual"]
    return {} if int(num * 5 / 32) == wanted else {"contextual_share": (wanted + 0.5) / num}


def check_groups(views: Views, case: dict, recorded: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Dominant patches, targets, and the groups that were recorded; ours are the same where that is strict."""
    keys = views.keys[-2][:, 1:].unflatten(-1, (views.num_heads, -1)).mean(dim=2)
    dominant, targets, group = select(views.rows[-2], keys, case["dominant"] - 1, case["contextual"])
    check_dominant(dominant, recorded["all_indices"])
    assert targets.equal(recorded["contextual_target_patch"])
    expected = torch.full_like(group, -1).scatter(1, recorded["merged_patch"], recorded["assignment"])
    expected = expected.scatter(1, targets, torch.arange(case["contextual"]).expand_as(targets))
    if case["strict"]:
        assert group.equal(expected)
    return dominant, targets, expected


@lru_cache(maxsize=2)
def needs():
    return VisionZip().needs


def check_llava(case: dict, recorded: dict[str, Tensor]) -> None:
    base, num = case["base"], case["tokens_per_crop"]
    seen = []

    class Watched(VisionZip):
        def encode(self, views: Views, num: int) -> Kept:
            dominant, targets, group = check_groups(views, case, recorded)
            kept = super().encode(views, num)
            if not case["strict"]:
                middle = views.features.take_along_dim(dominant.unsqueeze(-1), dim=1)
                tokens = torch.cat((views.cls.unsqueeze(1), middle, contextual(views.features, targets, group)), dim=1)
                kept = kept._replace(values=views.project(tokens))
                same(tokens[0], recorded["tower_output"][0], 1e-4)
            seen.append((kept, dominant, targets))
            return kept

    model, pixels = model_of(base, tower24=True), pixels_of(base, case["image_index"])
    with patch.dict(METHODS, {"visionzip": Watched}):
        found = run(
            model, inputs_of(base)["input_ids"], pixels, method="visionzip", visual_tokens=num, **method_of(case)
        )
    same(found.embeds[SPAN : SPAN + num], recorded["features_to_decoder"])
    check_answer(found, recorded)
    assert found.positions(0, 0) == list(range(len(found.embeds)))
    kept, dominant, targets = seen[0]
    assert found.visual(0) == kept.slots[0].tolist()
    assert {*dominant[0].tolist(), *targets[0].tolist()} < set(found.visual(0))


def check_next(case: dict, recorded: dict[str, Tensor]) -> None:
    (views, _), num = crops_of(case["image_index"], needs(), tower24=True), case["tokens_per_crop"]
    with torch.no_grad() if case["strict"] else nullcontext():
        dominant, targets, group = check_groups(views, case, recorded)
        middle = views.features.take_along_dim(dominant.unsqueeze(-1), dim=1)
        tokens = torch.cat((views.cls.unsqueeze(1), middle, contextual(views.features, targets, group)), dim=1)
        values = views.project(tokens)
        kept = VisionZip(**method_of(case)).encode(views, num)
    if case["strict"]:
        same(kept.values, values, 1e-5)
    columns = model_of(NEXT, tower24=True).tile_columns(case["crops"] - 1, tuple(case["image_size"]))
    same(torch.cat((values[0], stitched(values[1:], dominant[1:], columns))), recorded["features_to_decoder"])
