"""PyramidDrop's cases, driven by the counts that they record: its own rounding takes shares of the first number."""

from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods.pdrop import PyramidDrop

from .common import inputs_of, model_of, pixels_of, run, same, stage_of, stored_selection

BASE = "llava15_vscan"


def check(index: str, name: str, case: dict, folder: Path) -> None:
    recorded = load_file(folder / case["file"])
    if index.startswith("func"):
        check_function(case, recorded)
    else:
        check_whole(case, recorded)


def check_whole(case: dict, recorded: dict[str, Tensor]) -> None:
    starts, counts = case["settings"]["layer_list"], case["counts"]
    kept = [recorded[f"stage{stage}_kept_sorted"].tolist() for stage in range(len(starts))]
    with nullcontext() if case["strict"] else stored_selection("pdrop", kept):
        layers = dict(zip(starts, counts, strict=True))
        ids, pixels = inputs_of(BASE)["input_ids"], pixels_of(BASE, case["image"])
        found = run(model_of(BASE), ids, pixels, method="pdrop", layers=layers)

    for stage, start in enumerate(starts):
        assert found.relative(stage + 1) == kept[stage]
        assert found.visual(stage + 1) == recorded[f"stage{stage}_kept_raster"].tolist()
        assert found.positions(0, start) == recorded[f"stage{stage}_positions_after"].tolist()
    if "stage0_hidden_before" in recorded:
        same(found.inputs[0][starts[0]][0], recorded["stage0_hidden_before"][found.kept[1]])
    assert found.tokens == recorded["generated"].tolist()
    same(found.logits, recorded["scores"])
    same(found.logits[0], recorded["prefill_logits_last"])
    same(found.last_hidden, recorded["last_hidden_per_layer"])
    assert found.lengths == recorded["kv_len_prefill"].tolist()
    assert found.cached[1:] == recorded["decode_cache_len_before"].tolist()
    for step, positions in enumerate(recorded["decode_positions"].tolist(), start=1):
        assert [found.positions(step, layer)[0] for layer in range(len(positions))] == positions


def check_function(case: dict, recorded: dict[str, Tensor]) -> None:
    """The published routine on given features: one item, or a batch whose items begin and end at other columns."""
    hidden, valid = recorded["features"], recorded["attention_mask"].bool()
    shares = case["ratio_list_with_leading_1"][case["stage"] :]
    arriving, num = ([int(full * share) for full in case["image_tokens_full"]] for share in shares[:2])
    column = torch.arange(hidden.shape[1])
    first, behind = torch.tensor(case["image_token_posi"]).unsqueeze(1), torch.tensor(arriving).unsqueeze(1)
    visual = (column >= first) & (column < first + behind)
    stage = stage_of(model_of(BASE).model, case["rank_layer"], hidden, visual, num, valid)
    with torch.no_grad():
        scores, kept = stage.rows()[:, :, 0].mean(dim=1), PyramidDrop().prune(stage)

    for item, asking in enumerate(case["prompt_len"]):
        assert stage.last[item] == asking + arriving[item] - 1
        same(scores[item][visual[item]], recorded[f"scores_{item}"], atol=1e-6)
        slots = kept.slots[item] if kept.valid is None else kept.slots[item][kept.valid[item]]
        order = recorded[f"topk_order_{item}"]
        if case["strict"]:
            assert slots.tolist() == (order + first[item]).sort().values.tolist()
        stays = valid[item] & ~visual[item]
        stays[order + first[item]] = True
        left = recorded["mask_after"][item].bool()
        assert recorded["features_after"][item][left].equal(hidden[item][stays])
        assert recorded["positions_after"][item][left].tolist() == list(range(int(stays.sum())))
