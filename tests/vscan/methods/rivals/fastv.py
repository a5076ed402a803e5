"""FastV's cases: three published versions, of which the one with a cache selects once, as ours does.

The other two select again at every generated token: compared are the prompt's pass and the first token.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .common import NUM_TOKENS, Run, inputs_of, model_of, pixels_of, run, same, stored_selection

BASE = "llava15_vscan"


def check(index: str, name: str, case: dict, folder: Path) -> None:
    recorded, settings = load_file(folder / case["file"]), case["settings"]
    layer = settings.get("K", settings.get("agg_layer"))
    num = int(NUM_TOKENS * settings["ratio"]) if "ratio" in settings else settings["attention_rank"]
    ids = prompt_of(recorded)
    start, length = ids[0].tolist().index(-200), ids.shape[1] - 1 + NUM_TOKENS
    has_cache = "decode_cache_len_before" in recorded
    kept = recorded["kept_sorted"].tolist()
    with nullcontext() if case["strict"] else stored_selection("fastv", [kept]):
        model, pixels = model_of(BASE), pixels_of(BASE, case["image"])
        found = run(model, ids, pixels, num_new=16 if has_cache else 1, method="fastv", layers={layer: num})

    assert found.visual(1, start) == kept
    assert found.tokens == recorded["generated"][: len(found.tokens)].tolist()
    same(found.logits, recorded["scores"][: len(found.logits)])
    same(found.logits[0], recorded["prefill_logits_last"])
    same(found.last_hidden, recorded["last_hidden_per_layer"])
    if "hidden_before" in recorded:
        same(found.inputs[0][layer][0], recorded["hidden_before"][found.kept[1]])
    left = length - NUM_TOKENS + num
    assert found.lengths == [length] * layer + [left] * (len(found.lengths) - layer)
    assert found.positions(0, layer - 1) == list(range(length))
    assert found.positions(0, layer) == found.kept[1]
    if has_cache:
        check_cache(found, layer, case["calls_of_layer_Kminus1_in_prefill"], recorded)
    else:
        assert found.visual(1, start) == recorded["kept_sorted_per_step"][0].tolist()
        check_first_pass(found, recorded)


def prompt_of(recorded: dict[str, Tensor]) -> Tensor:
    """The recorded prompt; one version puts more tokens behind its first."""
    ids = inputs_of(BASE)["input_ids"]
    return torch.cat((ids[:, :1], recorded.get("extra_prompt_tokens", ids[0, :0])[None], ids[:, 1:]), dim=1)


def check_cache(found: Run, layer: int, num_calls: int, recorded: dict[str, Tensor]) -> None:
    """Lengths and positions of every step; the published function runs layer K - 1 more than once, each time into its
    cache, which changes no output."""
    calls = torch.ones(len(found.lengths), dtype=torch.long)
    calls[layer - 1] = num_calls
    assert found.lengths == (recorded["kv_len_prefill"] // calls).tolist()
    assert found.cached[1:] == (recorded["decode_cache_len_before"] // calls).tolist()
    assert found.positions(0, layer) == recorded["positions_after"].tolist()
    for step, positions in enumerate(recorded["decode_positions"].tolist(), start=1):
        assert [found.positions(step, each)[0] for each in range(len(positions))] == positions


def check_first_pass(found: Run, recorded: dict[str, Tensor]) -> None:
    """Lengths and positions of the version that drops tokens in place, and of the one that masks them."""
    positions, lengths = recorded["positions_from_layer_K"], recorded["seq_len_per_layer_prefill"].tolist()
    if "kv_len_prefill" in recorded:  # masked: all columns are there
        assert lengths == [found.lengths[0]] * len(lengths)
        positions = positions[found.kept[1]]
    else:
        assert found.lengths == lengths
    assert found.kept[1] == positions.tolist()
