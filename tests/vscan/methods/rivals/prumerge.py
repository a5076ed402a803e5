"""PruMerge's cases: given tower outputs, whole models, crop by crop.

The published fixed grid of PruMerge+ takes patches twice and loses as many others: a slow reference follows it, and
what it gives goes through the model in place of ours. Outliers counted over a batch are put in by hand.
"""

from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from vscan.methods import METHODS
from vscan.methods.base import Kept, Views
from vscan.methods.prumerge import PruMerge, attention, merged, outliers

from .common import NUM_TOKENS, SPAN, check_answer, crops_of, inputs_of, model_of, pixels_of, run, same


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if index.startswith("func"):
        check_function(name, case, load_file(folder / "func.safetensors"))
    elif index == "cases_next":
        check_next(case, load_file(folder / case["file"]))
    else:
        check_llava(case, load_file(folder / case["file"]))


def published(tokens: Tensor, scores: Tensor, keys: Tensor, kept: list[int], complement: list[int]) -> Tensor:
    """One view as published, clusters from a list of candidates: [K + 1, C]."""
    unit, rows = normalize(keys, dim=-1), []
    for at, patch_ in enumerate(kept):
        candidates = torch.tensor(kept[:at] + kept[at + 1 :] + complement)
        nearest = candidates[(unit[candidates] @ unit[patch_]).topk(32).indices]
        rows.append(tokens[patch_] + scores[nearest] @ tokens[nearest])
    return torch.stack([*rows, scores[complement] @ tokens[complement]])


def complement_of(kept: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    """What is dropped, ascending, less the first few where patches were kept twice."""
    return [token for token in range(num_tokens) if token not in set(kept)][len(kept) - len(set(kept)) :]


def published_grid(scores: Tensor, ratio: float) -> list[int]:
    """The not adaptive list of PruMerge+, with its repetitions."""
    step, num_tokens = int(1 / ratio), len(scores)
    first = scores.sort(descending=True, stable=True).indices[: int(num_tokens * ratio)].tolist()
    return first + list(range(step // 2, num_tokens - 1, step))


def views_of(tokens: Tensor, keys: Tensor, query: Tensor) -> Views:
    grid = (1, tokens.shape[1])
    return Views(tokens, tokens, {}, grid, lambda tokens: tokens, keys={-1: keys}, queries={-1: query})


def first_of(views: Views) -> Views:
    return views_of(views.features[:1], views.keys[-1][:1], views.queries[-1][:1])


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    if name.startswith("no_outliers"):
        num = recorded["K"].shape[1] - 2
        flat = views_of(recorded["hidden"][:, 1:], torch.ones_like(recorded["K"]), torch.ones_like(recorded["Q"][:, 0]))
        kept = PruMerge(plus="plus" in name, adaptive=True).encode(flat, num)
        assert kept.valid.sum(dim=1).tolist() == [1]
        uniform = torch.full((1, NUM_TOKENS), 1 / (NUM_TOKENS + 1))
        same(kept.values[:, 0], (uniform.unsqueeze(1) @ recorded["hidden"][:, 1:])[:, 0], 1e-5)
        return
    parts = ["", "_b1"] if name.startswith("batch2") else [""]
    hidden, keys, queries = (torch.cat([recorded[f"{key}{part}"] for part in parts]) for key in ("hidden", "K", "Q"))
    views, plus = views_of(hidden[:, 1:], keys, queries[:, 0]), case["mode"] == "prumerge_plus"
    scores = attention(queries[:, 0], keys)
    if "error" in case:  # a batch of PruMerge+: here every view is as it is alone
        together, alone = (PruMerge(plus, adaptive=True).encode(given, 300) for given in (views, first_of(views)))
        assert together.valid[0].equal(alone.valid[0])
        same(together.values[0][together.valid[0]], alone.values[0][alone.valid[0]], 1e-5)
        return
    order, out = recorded[f"{name}_kept_order"].long(), recorded[f"{name}_out"]
    if plus and case["reduction_ratio"]:
        assert published_grid(scores[0], case["reduction_ratio"]) == order[0].tolist()
        complement = complement_of(order[0].tolist())
        assert complement == recorded[f"{name}_complement"][0].tolist()
        same(published(hidden[0, 1:], scores[0], keys[0, 1:], order[0].tolist(), complement), out[0], 1e-5)
        check_unique(hidden[:, 1:], scores, keys[:, 1:], order)
        return
    adaptive = case["reduction_ratio"] is None
    over_batch = outliers
    if adaptive and len(parts) == 2:  # published counts outliers over the batch, and keeps so many of each

        def over_batch(scores: Tensor) -> Tensor:
            return outliers(scores.flatten().unsqueeze(0)).expand(2, 1) // 2

        if "adaptive_kept_order" in recorded:  # of the first alone
            assert outliers(scores)[0].item() == recorded["adaptive_kept_order"].shape[1]
    with patch("vscan.methods.prumerge.outliers", over_batch):
        kept = PruMerge(plus, adaptive).encode(views, NUM_TOKENS - 1 if adaptive else case["tokens"])
    check_kept(kept, order, out)


def check_unique(tokens: Tensor, scores: Tensor, keys: Tensor, order: Tensor) -> None:
    """Each patch once: ours, of the same patches, is the reference without the bug."""
    once = list(dict.fromkeys(order[0].tolist()))
    dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(1, torch.tensor(once), False)
    expected = published(tokens[0], scores[0], keys[0], once, dropped[0].nonzero()[:, 0].tolist())
    same(merged(tokens, scores, keys, torch.tensor([once]), dropped)[0], expected, 1e-5)


def check_kept(kept: Kept, order: Tensor, values: Tensor) -> None:
    """The order of patches, and values behind the tower, [V, K + 1, C]; the last one is at none of these patches."""
    num = order.shape[1] + 1
    valid = torch.ones_like(kept.slots, dtype=torch.bool) if kept.valid is None else kept.valid
    assert valid.sum(dim=1).tolist() == [num] * len(order)
    same(kept.values[:, :num], values, 1e-5)
    for view, patches in enumerate(order):
        assert kept.into[view, patches].tolist() == list(range(num - 1))
        slots = kept.slots[view, :num].tolist()
        assert slots == sorted(set(slots))
        assert set(patches.tolist()) < set(slots)


def check_llava(case: dict, recorded: dict[str, Tensor]) -> None:
    base, plus, num = case["base"], case["mode"] == "prumerge_plus", case["n_image_tokens"]
    order, watched, loses = recorded["kept_order"].long(), [], plus and not case["adaptive"]

    class Watched(PruMerge):
        def encode(self, views: Views, num: int) -> Kept:
            scores, keys = attention(views.queries[-1], views.keys[-1]), views.keys[-1][:, 1:]
            args = views.features[0], scores[0], keys[0], order.tolist()
            expected = recorded["tower_output"].unsqueeze(0)
            # Where only the 32nd neighbour swaps, outputs move by its attention.
            atol = 1e-4 if case["strict"] else 0.05
            if loses:
                assert published_grid(scores[0], case["reduction_ratio"]) == order.tolist()
                same(published(*args, complement_of(order.tolist())), expected[0], 1e-4)
                check_unique(views.features, scores, keys, order.unsqueeze(0))
                slots = torch.arange(num).unsqueeze(0)
                return Kept(slots, views.project(expected))
            kept = super().encode(views, num)
            if self.adaptive:  # whatever the bound
                more = super().encode(views, NUM_TOKENS - 1)
                assert more.valid.sum() == num
                assert more.slots[:, :num].equal(kept.slots)
                assert more.values[:, :num].equal(kept.values)
            dropped = torch.ones_like(scores, dtype=torch.bool).index_fill(1, order, False)
            same(merged(views.features, scores, keys, order.unsqueeze(0), dropped), expected, atol)
            assert kept.into[0, order].tolist() == list(range(len(order)))
            watched.append(kept)
            places = slice(0, len(order) + 1)
            same(kept.values[:, places], views.project(expected), 2e-4 if case["strict"] else 0.05)
            if not case["strict"]:
                kept.values[:, places] = views.project(expected)
            return kept

    model, pixels = model_of(base, tower24=True), pixels_of(base, case["image_index"])
    with patch.dict(METHODS, {"prumerge": Watched}):
        fields = {"plus": plus, "adaptive": case["adaptive"]}
        found = run(model, inputs_of(base)["input_ids"], pixels, method="prumerge", visual_tokens=num, **fields)
    same(found.embeds[SPAN : SPAN + num], recorded["features_to_decoder"])
    check_answer(found, recorded)
    assert found.positions(0, 0) == list(range(len(found.embeds)))
    for kept in watched:
        assert found.visual(0) == kept.slots[0, :num].tolist()


def check_next(case: dict, recorded: dict[str, Tensor]) -> None:
    """Published is each crop alone, one behind the other."""
    views, _ = crops_of(case["image_index"], PruMerge().needs, tower24=True)
    kept = PruMerge("plus" in case["file"], adaptive=True).encode(views, NUM_TOKENS - 1)
    numbers = kept.valid.sum(dim=1).tolist()
    assert [number - 1 for number in numbers] == case["kept_per_crop"]
    order = recorded["kept_order"].long().split(case["kept_per_crop"])
    for view, patches in enumerate(order):
        assert kept.into[view, patches].tolist() == list(range(len(patches)))
    same(
        torch.cat([row[:number] for row, number in zip(kept.values, numbers, strict=True)]),
        recorded["features_to_decoder"],
    )
