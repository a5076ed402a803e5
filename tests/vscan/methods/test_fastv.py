"""FastV keeps what the layer before attended to, and its schedule counts what the layers process."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import seeded, tiny_parts
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from vscan.config import Unreachable, count
from vscan.methods.fastv import FastV

sys.path.append(str(Path(__file__).parent))
from rivals.common import stage_of

NUM_LAYERS = 4


def processed(layers: dict, num_layers: int, num_tokens: int) -> int:
    """Visual tokens of a view that all layers together see."""
    left, total = num_tokens, 0
    for layer in range(num_layers):
        left = count(left, layers.get(layer))
        total += left
    return total


@pytest.fixture(scope="module")
def text_model():
    _, config = tiny_parts(NUM_LAYERS, 2, 4)
    config._attn_implementation = "eager"
    return seeded(lambda: LlamaForCausalLM(config)).model


@pytest.fixture(scope="module")
def prompts() -> tuple[Tensor, Tensor, Tensor]:
    """Two prompts, the second of which is shorter: embeddings, visual columns, valid columns."""
    embeds = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(0))
    visual, valid = torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool)
    visual[0, 3:15] = visual[1, 1:6] = visual[1, 8:12] = True  # the second holds two pictures
    valid[1, 17:] = False
    return embeds, visual, valid


def dense(text_model, embeds: Tensor, valid: Tensor):
    with torch.no_grad():
        return text_model(
            inputs_embeds=embeds, attention_mask=valid.long(), output_attentions=True, output_hidden_states=True
        )


@pytest.mark.parametrize("layer", [1, 2, 5])
@pytest.mark.parametrize(("num_layers", "num_tokens"), [(32, 576), (8, 576), (28, 1001), (6, 16)])
def test_counts_meet_the_average_by_counting(layer, num_layers, num_tokens):
    least = -(-layer * num_tokens // num_layers)
    for average in range(least, num_tokens + 1):
        (stage,) = (schedule := FastV(layer).schedule(average, num_layers, num_tokens)).layers.items()
        assert schedule.visual_tokens is None
        assert stage[0] == layer
        assert isinstance(stage[1], int)
        total = processed(schedule.layers, num_layers, num_tokens)
        assert (average - 1) * num_layers < total <= average * num_layers


@pytest.mark.parametrize("num_tokens", [None, 576])
def test_shares_meet_the_average_by_counting(num_tokens):
    for average in (0.0625, 0.111, 1 / 3, 0.5, 0.9, 1.0):
        total = processed(FastV().schedule(average, 32, num_tokens).layers, 32, 57600)
        assert average - 1e-4 < total / 32 / 57600 <= average


@pytest.mark.parametrize("num_layers", [3, 8, 32])
def test_the_least_average_exists_and_one_below_it_does_not(num_layers):
    for num_tokens in (576, 577, 2880):
        with pytest.raises(Unreachable) as refused:
            FastV().schedule(1, num_layers, num_tokens)
        least = refused.value.least
        assert isinstance(least, int)
        assert FastV().schedule(least, num_layers, num_tokens).layers[2] >= 0
        with pytest.raises(Unreachable, match=f"not reachable \\(at least {least}\\)"):
            FastV().schedule(least - 1, num_layers, num_tokens)
    with pytest.raises(Unreachable) as refused:
        FastV().schedule(0.01, num_layers, None)
    assert refused.value.least == 2 / num_layers
    assert FastV().schedule(2 / num_layers, num_layers, None).layers == {2: 0}


def test_budgets_of_32_layers_are_those_that_the_average_convention_gives():
    def budgets(layer, num_tokens, averages):
        return [FastV(layer).schedule(average, 32, num_tokens).layers[layer] for average in averages]

    assert budgets(2, 576, (192, 128, 64)) == [166, 98, 29]
    assert budgets(3, 576, (192, 128, 64)) == [152, 81, 11]
    assert budgets(2, 2880, (640, 320)) == [490, 149]
    assert budgets(1, 2880, (640, 320, 160)) == [567, 237, 72]
    with pytest.raises(Unreachable, match="at least 180"):
        FastV().schedule(160, 32, 2880)


def test_a_decoder_has_more_layers_than_are_left_dense():
    with pytest.raises(ValueError, match="fewer dense layers than the decoder's 4, got 4"):
        FastV(4).schedule(64, 4, 576)
    with pytest.raises(ValueError, match="layer: expected an int of at least 1, got 0"):
        FastV(0)


@pytest.mark.parametrize("layer", [1, 3])
def test_what_the_layer_before_attended_to_most_is_kept(text_model, prompts, layer):
    embeds, visual, valid = prompts
    output = dense(text_model, embeds, valid)
    hidden, before = output.hidden_states[layer], output.hidden_states[layer - 1]
    stage = stage_of(text_model, layer, hidden, visual, [6, 6], valid, before)
    with torch.no_grad():
        kept = FastV().prune(stage)
    assert kept.values is None
    assert kept.valid is None
    for item, last in enumerate(stage.last.tolist()):
        row = output.attentions[layer - 1][item, :, last].mean(dim=0).masked_fill(~visual[item], -1)
        assert kept.slots[item].tolist() == row.topk(6).indices.sort().values.tolist()


def test_a_batch_equals_its_items_alone(text_model, prompts):
    embeds, visual, valid = prompts
    output = dense(text_model, embeds, valid)
    given = (output.hidden_states[2], visual, valid, output.hidden_states[1])
    num = [7, 4]
    with torch.no_grad():
        together = FastV().prune(stage_of(text_model, 2, given[0], visual, num, valid, given[3]))
        assert together.valid.sum(dim=1).tolist() == num
        for item in range(2):
            length = int(valid[item].sum())
            hidden, seen, _, before = (tensor[item : item + 1, :length] for tensor in given)
            alone = FastV().prune(stage_of(text_model, 2, hidden, seen, num[item : item + 1], None, before))
            assert together.slots[item][together.valid[item]].equal(alone.slots[0])


@pytest.mark.parametrize("num", [[5, 5], [5, 0]])
def test_pruning_reads_nothing_from_the_device(text_model, prompts, num):
    embeds, visual, valid = prompts
    stage = stage_of(text_model, 2, embeds, visual, num, valid)
    layers = stage_of(seeded(lambda: LlamaForCausalLM(text_model.config)).model, 2, embeds, visual, num).layers
    moved = {each.name: to_meta(getattr(stage, each.name)) for each in fields(stage) if each.name != "final_norm"}
    kept = FastV().prune(replace(stage, **moved | {"layers": [layer.to("meta") for layer in layers]}))
    assert kept.slots.device.type == "meta"
    assert kept.slots.shape == (2, 5)


def to_meta(value):
    """A value whose tensors, alone or in a list or a pair, hold no data."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(to_meta, value))
    return value.to("meta") if isinstance(value, Tensor | nn.Module) else value
