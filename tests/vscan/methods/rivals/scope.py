"""SCOPE's cases: given features and attention, whole models, crop by crop, Qwen2.5-VL."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from vscan.methods.base import Needs
from vscan.methods.scope import SCOPE, select
from vscan.methods.shared.cover import cosines

from .common import check_crops, check_kept, check_qwen, crops_of


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if case["kind"] == "function":
        check_function(name, case, load_file(folder / "func.safetensors"))
        return
    recorded = load_file(folder / f"{name}.safetensors")
    if case["kind"] == "whole_model":
        check_kept(case, recorded, "scope", case["T"], alpha=case["alpha"])
    elif case["kind"] == "whole_model_next":
        views, projected = crops_of(case["image"], Needs(rows=(-2,)))
        kept = SCOPE().encode(views, case["selected_shape"][1]).slots
        check_crops(case, recorded, kept.tolist(), projected)
    else:
        check_qwen(case, recorded, "scope", case["kept"], attention_layer=-1)


def check_function(name: str, case: dict, recorded: dict) -> None:
    source = name.split("/")[0]
    similarity, attention = cosines(recorded[f"{source}.features_int8"].float()), recorded[f"{source}.attention"]
    attention = attention if case["attention"] else torch.ones_like(attention)
    combined = {"multi": "multiply", "add": "add"}[case["combined"]]
    found = select(similarity, attention, case["kept"], case["alpha"], combined)
    selected, gains = recorded[f"{name}.selected"], recorded[f"{name}.gain_at_step"]
    if case["strict"]:
        assert found.tolist() == selected.tolist()
        return
    # Two tokens that cover only themselves gain the same: what each round gains is what was recorded.
    covered = torch.zeros_like(similarity[:, 0])
    for step in range(case["kept"]):
        row = similarity.take_along_dim(found[:, step].view(-1, 1, 1), dim=1)[:, 0]
        torch.testing.assert_close((row - covered).relu().sum(dim=-1), gains[:, step], rtol=1e-4, atol=1e-5)
        covered = torch.maximum(covered, row)
