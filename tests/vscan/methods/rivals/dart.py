"""DART's cases: pivots choose in the order of a Python set there, which is handed in; the rest is ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vscan.methods import METHODS
from vscan.methods.base import Kept, Stage
from vscan.methods.dart import DART

from .common import NUM_TOKENS, SPAN, inputs_of, model_of, pixels_of, run, same, stage_of

BASE = "llava15_vscan"


def check(index: str, name: str, case: dict, folder: Path) -> None:
    recorded = load_file(folder / case["file"])
    if index.startswith("func"):
        check_function(case, recorded)
    else:
        check_whole(case, recorded)


def method_of(order: Tensor, image: Tensor, text: Tensor) -> type:
    """The method, whose pivots have to be these columns, and are visited in the recorded order."""

    class Ordered(DART):
        def visited(self, pivots: Tensor) -> Tensor:
            assert pivots[0].tolist() == [*image.tolist(), *text.tolist()]
            assert sorted(order.tolist()) == pivots[0].sort().values.tolist()
            return order.unsqueeze(0)

    return Ordered


@contextmanager
def registered(cls: type) -> Iterator[None]:
    with patch.dict(METHODS, {"dart": cls}):
        yield


def check_whole(case: dict, recorded: dict[str, Tensor]) -> None:
    settings, picks = case["settings"], recorded["picks_per_pivot"]
    layer, num_image, num_text = (settings[name] for name in ("K", "pivot_image_token", "pivot_text_token"))
    num = settings["max_num_trunction"] or picks.numel()
    method = method_of(
        recorded["pivot_visit_order"], recorded["image_pivots"] + SPAN, recorded["text_pivots"] + SPAN + NUM_TOKENS
    )
    pivots = {"image_pivots": num_image, "text_pivots": num_text}
    assert DART(**pivots).leaves(num, NUM_TOKENS) == case["n_kept"]
    with registered(method):
        ids, pixels = inputs_of(BASE)["input_ids"], pixels_of(BASE, case["image"])
        found = run(model_of(BASE), ids, pixels, method="dart", layers={layer: num}, **pivots)
    kept = recorded["kept"].sort().values.tolist()
    assert kept == sorted({*recorded["image_pivots"].tolist(), *picks.flatten().tolist()})
    assert found.visual(1) == kept
    assert found.kept[1] == recorded["kept_positions_full"].tolist()
    assert found.positions(0, layer) == recorded["positions_after"].tolist()
    if "hidden_before" in recorded:
        same(found.inputs[0][layer][0], recorded["hidden_before"][0][found.kept[1]])
    assert found.tokens == recorded["generated"].tolist()
    same(found.logits, recorded["scores"])
    same(found.logits[0], recorded["prefill_logits_last"])
    same(found.last_hidden, recorded["last_hidden_per_layer"])
    assert found.lengths == recorded["kv_len_prefill"].tolist()
    assert found.cached[1:] == recorded["decode_cache_len_before"].tolist()
    for step, positions in enumerate(recorded["decode_positions"].tolist(), start=1):
        assert [found.positions(step, layer)[0] for layer in range(len(positions))] == positions


def check_function(case: dict, recorded: dict[str, Tensor]) -> None:
    """The published routine on given keys and states, which it was given normed."""
    config, keys, hidden = case["config"], recorded["keys"], recorded["hidden_final_normed"]
    start, num_visual = config["image_token_start_index"], len(recorded["image_key_l1"])
    same(keys[0].abs().sum(dim=(0, 2))[start : start + num_visual], recorded["image_key_l1"], 1e-4)
    counts = recorded["picks_per_pivot_counts"].tolist()
    assert len(set(counts)) == 1
    visual = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    visual[:, start : start + num_visual] = True
    image, text = recorded["image_pivots_rel"] + start, recorded["text_pivots_rel"] + start + num_visual

    class Given(Stage):
        def keys(self, back: int = 0) -> Tensor:
            assert back == 1
            return keys

    model = model_of(BASE).model
    stage = stage_of(model, 1, torch.zeros(1, hidden.shape[1], model.config.hidden_size), visual, [sum(counts)])
    given = {each.name: getattr(stage, each.name) for each in fields(stage)}
    stage = Given(**given | {"hidden": hidden, "final_norm": nn.Identity()})
    method = method_of(recorded["pivot_visit_order"], image, text)
    pivots = {"image_pivots": config["pivot_image_token"], "text_pivots": config["pivot_text_token"]}
    kept: Kept = method(**pivots).prune(stage)
    assert kept.slots[0].tolist() == recorded["retained_sorted"].tolist()
    assert len(kept.slots[0]) == case["n"]
    assert kept.values is None
