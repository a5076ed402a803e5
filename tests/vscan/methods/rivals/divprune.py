"""DivPrune's cases: given tokens, whole models, the list over all crops and newlines, Qwen2.5-VL."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vscan.methods.divprune import DivPrune
from vscan.methods.shared.cover import cosines, farthest

from .common import NEXT, check_kept, check_qwen, crops_of, model_of, same


def check(index: str, name: str, case: dict, folder: Path) -> None:
    if case["kind"] == "function":
        recorded = load_file(folder / "func.safetensors")
        tokens = recorded[f"{name.split('/')[0]}.features_int8"].float()
        check_list(case, recorded[f"{name}.selected"], tokens)
        return
    recorded = load_file(folder / f"{name}.safetensors")
    if case["kind"] == "whole_model":
        assert DivPrune().schedule(case["ratio"], 32, 576).visual_tokens == case["kept"]
        check_kept(case, recorded, "divprune", case["kept"])
    elif case["kind"] == "whole_model_next":
        model, (_, projected) = model_of(NEXT), crops_of(case["image"])
        with torch.no_grad():
            packed = model.pack_crops(projected, tuple(case["image_size"]), model.model.image_newline)
        assert len(packed) == case["candidates"]
        check_list({**case, "strict": True}, recorded["selected"], packed)
        start, kept = recorded["input_ids"][0].tolist().index(-200), recorded["selected"].sort().values
        same(packed[kept], recorded["inputs_embeds"][0, start : start + len(kept)], 2e-5)
    else:
        check_qwen(case, recorded, "divprune", case["kept"])


def check_list(case: dict, selected: Tensor, tokens: Tensor) -> None:
    """Tokens [N, D] and the recorded choice of some of them, in its order."""
    distances = 1 - cosines(tokens.unsqueeze(0))
    found = farthest(distances, len(selected))[0]
    assert len(set(found.tolist())) == len(found)
    if case["strict"]:
        assert found.tolist() == selected.tolist()
        return
    # Ties, or rows that repeat: published takes a row twice then; how far a choice is from the others is the same.
    torch.testing.assert_close(reached(distances[0], found), reached(distances[0], selected.long()), atol=1e-6, rtol=0)


def reached(distances: Tensor, picks: Tensor) -> Tensor:
    """How far every choice, from the second on, is from those before it."""
    return torch.stack([distances[pick, picks[:at]].min() for at, pick in enumerate(picks) if at])
