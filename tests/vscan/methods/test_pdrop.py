"""PyramidDrop's stages leave equal shares, and its schedule counts what the layers process."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import seeded, tiny_parts
from transformers import LlamaForCausalLM

from vscan.config import Unreachable, count
from vscan.methods.pdrop import PyramidDrop

sys.path.append(str(Path(__file__).parent))
from rivals.common import stage_of


def numbers(layers: dict, num_layers: int, num_tokens: int) -> list[int]:
    """Visual tokens of a view that each layer sees."""
    left, seen = num_tokens, []
    for layer in range(num_layers):
        left = count(left, layers.get(layer))
        seen.append(left)
    return seen


def test_the_published_schedule_is_half_at_every_quarter_of_the_depth():
    published = PyramidDrop.presets["published"]
    assert published.visual_tokens is None
    seen = numbers(published.layers, 32, 576)
    assert seen == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert sum(seen) == 270 * 32
    assert PyramidDrop().schedule(270, 32, 576).layers == {8: 288, 16: 144, 24: 72}
    by_share = PyramidDrop().schedule(270 / 576, 32, None).layers
    assert numbers(by_share, 32, 576) == seen


@pytest.mark.parametrize(("num_layers", "num_tokens"), [(32, 576), (8, 576), (28, 1001), (6, 16), (3, 64)])
def test_counts_meet_the_average_by_counting(num_layers, num_tokens):
    least = -(-(num_layers // 4) * num_tokens // num_layers)
    for average in range(max(least, 1), num_tokens + 1, 3):
        schedule = PyramidDrop().schedule(average, num_layers, num_tokens)
        assert schedule.visual_tokens is None
        assert list(schedule.layers) == sorted({num_layers // 4, num_layers // 2, num_layers * 3 // 4})
        total = sum(numbers(schedule.layers, num_layers, num_tokens))
        assert (average - 1) * num_layers < total <= average * num_layers


def test_every_stage_leaves_the_same_share_of_what_arrives():
    layers = PyramidDrop().schedule(600, 32, 1000).layers
    first, second, third = layers.values()
    ratio = first / 1000
    assert abs(second - 1000 * ratio**2) < 2
    assert abs(third - 1000 * ratio**3) < 3
    assert len(set(PyramidDrop().schedule(0.6, 32, None).layers.values())) == 1


def test_a_ratio_that_gives_whole_tokens_gives_all_of_them():
    for num_tokens, ratio in ((540, 3), (576, 2), (686, 7)):
        budgets = [num_tokens // ratio**power for power in (1, 2, 3)]
        average = (num_tokens + sum(budgets)) // 4
        assert list(PyramidDrop().schedule(average, 32, num_tokens).layers.values()) == budgets
        by_share = PyramidDrop().schedule((num_tokens + sum(budgets)) / num_tokens / 4, 32, None).layers
        assert numbers(by_share, 32, num_tokens)[8::8] == budgets


@pytest.mark.parametrize("num_tokens", [None, 576])
def test_shares_meet_the_average_by_counting(num_tokens):
    for average in (0.27, 0.3, 1 / 3, 0.5, 0.9, 1.0):
        seen = numbers(PyramidDrop().schedule(average, 32, num_tokens).layers, 32, 57600)
        assert average - 1e-4 < sum(seen) / 32 / 57600 <= average + 1e-12


def test_the_least_average_is_a_quarter_of_the_tokens():
    for num_layers, num_tokens, least in ((32, 576, 144), (8, 576, 144), (32, 2880, 720), (28, 1001, 251)):
        for average in (1, least - 1):
            with pytest.raises(Unreachable, match=f"not reachable \\(at least {least}\\)"):
                PyramidDrop().schedule(average, num_layers, num_tokens)
        assert min(PyramidDrop().schedule(least, num_layers, num_tokens).layers.values()) >= 0
    with pytest.raises(Unreachable, match=r"at least 0\.25"):
        PyramidDrop().schedule(0.111, 32, None)
    assert set(PyramidDrop().schedule(0.25, 32, None).layers.values()) == {0}


def test_what_the_layer_about_to_run_attends_to_most_is_kept_in_a_batch_as_alone():
    _, config = tiny_parts(4, 2, 4)
    config._attn_implementation = "eager"
    text_model = seeded(lambda: LlamaForCausalLM(config)).model
    embeds = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(1))
    visual, valid = torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool)
    visual[0, 3:15] = visual[1, 1:6] = visual[1, 8:12] = True  # the second holds two pictures
    valid[1, 17:] = False
    num = [7, 4]
    with torch.no_grad():
        output = text_model(
            inputs_embeds=embeds, attention_mask=valid.long(), output_attentions=True, output_hidden_states=True
        )
        hidden = output.hidden_states[2]
        stage = stage_of(text_model, 2, hidden, visual, num, valid)
        together = PyramidDrop().prune(stage)
        for item in range(2):
            length = int(valid[item].sum())
            given = (hidden[item : item + 1, :length], visual[item : item + 1, :length])
            alone = PyramidDrop().prune(stage_of(text_model, 2, *given, num[item : item + 1])).slots[0]
            row = output.attentions[2][item, :, length - 1].mean(dim=0).masked_fill(~visual[item], -1)
            assert alone.tolist() == row.topk(num[item]).indices.sort().values.tolist()
            assert together.slots[item][together.valid[item]].equal(alone)
