"""ToMe's cases: the published matching on given metrics, and whole towers with our connection to LLaVA."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods import METHODS
from vscan.methods.base import Kept, Views
from vscan.methods.tome import ToMe, match, merge, merges
from vscan.models.towers import run_tower

from .common import NUM_TOKENS, SPAN, inputs_of, model_of, pixels_of, run, same

BASE = "llava15_vscan"


def cases(index: str, content: dict) -> dict[str, dict]:
    """By name; of the published ways to spell merges a block, the even one is ours."""
    found = {Path(case["file"]).stem if "file" in case else case["name"]: case for case in content["cases"]}
    spelled = [entry for entry in content.get("parse_r", []) if isinstance(entry["r"], int)]
    return found | {f"r{entry['r']}_of_{entry['num_layers']}": entry for entry in spelled}


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if "result" in case:
        num_merged = sum(case["result"])
        assert merges(5 * num_merged, 4 * num_merged, case["num_layers"]) == case["result"]
    elif index.startswith("func"):
        check_function(name, case, load_file(folder / "func.safetensors"))
    else:
        check_whole(case, load_file(folder / case["file"]))


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    metric, hidden = recorded[f"{case['input']}_metric"], recorded[f"{case['input']}_x"]
    sizes = recorded[f"{case['input']}_size"][..., 0] if case["with_size"] else torch.ones(metric.shape[:2])
    length, expected = metric.shape[1], recorded[f"{name}_assignment"].long()
    num_merged = min(case["r"], (length - case["class_token"]) // 2)  # more is silently not done
    if num_merged == 0:  # a block does not ask then, and leaves the order
        into = torch.arange(length).expand(metric.shape[:2])
    else:
        into = match(metric, num_merged) if case["class_token"] else match_without_cls(metric, num_merged, expected)
    assert into.equal(expected)
    merged, totals = merge(hidden, sizes, into, case["tokens_out"])
    same(merged, recorded[f"{name}_out"], atol=1e-6)
    assert totals.equal(recorded[f"{name}_size"])


def match_without_cls(metric: Tensor, num_merged: int, expected: Tensor) -> Tensor:
    """The same for a tower without [CLS], which we have none of: here one goes in front, with a partner behind it that
    is unlike all others. What stays of A is then in another order, descending nearness: that is taken as recorded."""
    metric = torch.nn.functional.normalize(metric, dim=-1)
    metric = torch.cat((metric, torch.ones_like(metric[..., :1])), dim=-1)  # orders cosines as they were
    front = torch.zeros_like(metric[:, :2])
    front[:, 0, 0], front[:, 1, -1] = 1, -1
    into = match(torch.cat((front, metric), dim=1), num_merged)[:, 2:]
    first_b = (metric.shape[1] + 1) // 2 - num_merged
    stays = into < first_b + 1  # of A, behind [CLS]
    assert stays.equal(expected < first_b)
    for item in expected.masked_fill(~stays, -1):
        assert item[item >= 0].sort().values.equal(torch.arange(first_b))
    return torch.where(stays, expected, into - 2)


def check_whole(case: dict, recorded: dict[str, Tensor]) -> None:
    num, model, pixels = case["n_image_tokens"], model_of(BASE, tower24=True), pixels_of(BASE, case["image_index"])
    tower = model.model.vision_tower
    depth = tower.vision_tower.config.num_hidden_layers + 1 + tower.select_layer
    assert merges(NUM_TOKENS, num, depth) == case["r_per_block"][:depth]
    with torch.no_grad():
        seen = run_tower(tower.vision_tower, pixels, tower.select_layer, ToMe().needs, ToMe().block, num)
    assert seen.hidden.shape == (1, num + 1, recorded["tower_output"].shape[1])
    if case["strict"]:
        assert seen.state["into"][0].equal(recorded["assignment"].long())
        assert seen.state["sizes"][0].equal(recorded["size"])
        same(seen.hidden[0], recorded["tower_output"])

    class Stored(ToMe):
        """What follows the tower, where rounding decides which tokens it merges."""

        def encode(self, views: Views, num: int) -> Kept:
            return super().encode(views, num)._replace(values=views.project(recorded["tower_output"][None, 1:]))

    with nullcontext() if case["strict"] else patch.dict(METHODS, {"tome": Stored}):
        found = run(model, inputs_of(BASE)["input_ids"], pixels, method="tome", visual_tokens=num)
    same(found.embeds[SPAN : SPAN + num], recorded["features_to_decoder"])
    same(found.logits[0], recorded["prefill_logits_last"])
    assert found.tokens == recorded["generated"].tolist()
    assert found.lengths == [len(found.embeds)] * len(found.lengths)
    assert found.positions(0, 0) == list(range(len(found.embeds)))
    into = seen.state["into"][0, 1:]
    assert found.visual(0) == sorted((into == place).nonzero()[0].item() for place in range(1, num + 1))
