"""MMTok's cases: given tokens, whole models with a tokenizer of whole words, words of questions, padding."""

from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods.mmtok import coverage, keywords, select
from vscan.methods.shared.grid import padding

from .common import check_kept, model_of, said, same

SIDE, PATCH = 24, 14


class Vocabulary:
    """A tokenizer of whole words."""

    def __init__(self, ids: dict[str, int]):
        self.ids = ids

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        assert not add_special_tokens
        return {"input_ids": [self.ids.get(word, self.ids["<unk>"]) for word in text.split()]}


def cases(index: str, content: dict) -> dict[str, dict]:
    """Cases by name, texts by number, sizes of padded pictures."""
    found = {
        case["name"]: {**case, "vocabulary": said(content, "mmtok", "vocabulary")} for case in content.get("cases", [])
    }
    found |= {f"keywords_{number}": case for number, case in enumerate(content.get("keywords", []))}
    sizes = content.get("padding_excluded", {}).items()
    return found | {f"padding_{size}": {"size": size, "excluded": excluded} for size, excluded in sizes}


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if "size" in case:
        check_padding(case)
    elif "kind" not in case:
        assert keywords(case["text"]) == case["keywords"]
    elif case["kind"] == "function":
        check_function(name, case, load_file(folder / "func.safetensors"))
    else:
        check_whole(name, case, folder)


def check_padding(case: dict) -> None:
    """A picture of something, in the middle of a square of the mean colour as it is rounded to whole numbers."""
    sides = [int(part) for part in case["size"].split("x")]
    width, height = (round(side * SIDE * PATCH / max(sides)) for side in sides)
    pixels = torch.full((1, 3, SIDE * PATCH, SIDE * PATCH), -0.0113)
    top, left = (SIDE * PATCH - height) // 2, (SIDE * PATCH - width) // 2
    pixels[:, :, top : top + height, left : left + width] = 1.0
    assert padding(pixels, (SIDE, SIDE))[0].nonzero()[:, 0].tolist() == sorted(case["excluded"])


def check_function(name: str, case: dict, recorded: dict[str, Tensor]) -> None:
    source = name.split("/")[0]
    tokens, features, words = (recorded[f"{source}.{key}_int8"].float() for key in ("projected", "vision", "text"))
    temperatures = case["tv_temp"], case["vv_temp"], case["alpha"]
    nearness = coverage([words], tokens.unsqueeze(0), features.unsqueeze(0), *temperatures)
    excluded = None
    if case["excluded"]:
        excluded = torch.zeros(1, len(tokens), dtype=torch.bool)
        excluded[0, recorded[f"{source}.excluded"].long()] = True
    found, selected = select(nearness, case["kept"], excluded), recorded[f"{name}.selected"].long()
    if case["strict"]:
        assert found[0].tolist() == selected.tolist()
    covered = torch.zeros_like(nearness[:, 0])
    for step, gain in enumerate(recorded[f"{name}.gain_at_step"]):
        row = nearness[:, selected[step]]
        torch.testing.assert_close((row - covered).relu().sum(), gain, rtol=1e-3, atol=1e-7)
        covered = torch.maximum(covered, row)


def check_whole(name: str, case: dict, folder: Path) -> None:
    recorded = load_file(folder / f"{name}.safetensors")
    vocabulary, question = Vocabulary(case["vocabulary"]), case["question"]
    ids = vocabulary(keywords(question), add_special_tokens=False)["input_ids"]
    assert ids == case["text_ids"]
    vision = load_file(folder / f"vision_img{case['image']}{'_padexcl' * bool(case['excluded'])}.safetensors")
    rows = [value for key, value in vision.items() if key.endswith("text_embeddings")]
    table = model_of("llava15_vscan").get_input_embeddings().weight.detach()
    assert any(len(row) == len(ids) and row.equal(table[torch.tensor(ids)]) for row in rows)
    excluded = torch.zeros(1, SIDE**2, dtype=torch.bool)
    if case["excluded"]:  # the picture itself has no padding: it was said to
        excluded[0, vision["excluded"].long()] = True
        assert int(excluded.sum()) == case["excluded"]
    fields = {"tau_text": case["tv_temp"], "tau_vision": case["vv_temp"], "alpha": case["alpha"]}
    if fields == {"tau_text": 0.02, "tau_vision": 0.2, "alpha": 0.5}:
        fields = {}
    with patch("vscan.methods.mmtok.padding", lambda pixels, grid: excluded):
        found = check_kept(case, recorded, "mmtok", case["kept"], processor=vocabulary, text=[question], **fields)
    same(found.embeds, recorded["inputs_embeds"][0], 2e-5)
