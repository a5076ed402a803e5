"""DART where recorded data says nothing: few tokens, unequal items, padding, averages."""

import pytest
import torch
from helpers import pictures, prompt, tiny_llava
from torch.nn.functional import cosine_similarity

import vscan
from vscan.config import ReductionConfig, Unreachable
from vscan.flops import average_tokens, tokens_per_layer
from vscan.methods.dart import DART
from vscan.plan import scheduled


@pytest.mark.parametrize(
    ("num", "arriving", "left"),
    [(192, 576, 196), (128, 576, 132), (64, 576, 68), (600, 576, 572), (7, 576, 4), (9, 3, 3), (8, 11, 4), (8, 12, 12)],
)
def test_four_more_stay_than_pivots_take(num, arriving, left):
    assert DART().leaves(num, arriving) == left


@pytest.mark.parametrize(
    ("num", "arriving", "left"), [(96, 576, 98), (600, 576, 570), (7, 9, 2), (8, 10, 10), (9, 1, 1)]
)
def test_pivots_that_are_fewer_are_counted(num, arriving, left):
    assert DART(image_pivots=2, text_pivots=6).leaves(num, arriving) == left


@pytest.mark.parametrize("average", [64, 96, 128, 192, 300])
@pytest.mark.parametrize("num_layers", [28, 32, 40])
def test_the_average_is_what_layers_process_or_less_by_part_of_a_round(average, num_layers):
    schedule = DART().schedule(average, num_layers, 576)
    ((layer, num),) = schedule.layers.items()
    kept = DART().leaves(num, 576)
    processed = (layer * 576 + (num_layers - layer) * kept) / num_layers
    assert layer == 2
    assert average - 8 < processed <= average


def test_what_is_not_reachable_says_the_least_that_is():
    with pytest.raises(Unreachable) as found:
        scheduled(ReductionConfig("dart", average=64), DART(), 8, 576)
    least = (2 * 576 + 6 * 4) / 8
    assert found.value.least == least
    assert scheduled(ReductionConfig("dart", average=int(least)), DART(), 8, 576).layers == ((2, 1),)
    with pytest.raises(Unreachable) as found:
        scheduled(ReductionConfig("dart", average=0.2), DART(), 8, None)
    assert found.value.least == 0.25
    assert scheduled(ReductionConfig("dart", average=0.5), DART(), 8, None).layers == ((2, 1 / 3),)
    with pytest.raises(ValueError, match="expected fewer dense layers than the decoder's 2, got 2"):
        DART().schedule(64, 2, 576)


def test_published_schedules_keep_four_more_than_their_name():
    for name, asked in (("published-192", 192), ("published-64", 64), ("published-32", 32)):
        config = scheduled(ReductionConfig("dart", preset=name), DART(), 32, 576)
        assert config.layers == ((2, asked),)
        stages = tuple((layer, DART().leaves(num, 576)) for layer, num in config.layers)
        assert average_tokens(tokens_per_layer(32, 576, stages)) == (2 * 576 + 30 * (asked + 4)) / 32


def by_hand(model, stage, fields) -> list[int]:
    """What stays of a prompt without padding: its keys by the layer's own parts."""
    method, layer, hidden = DART(**fields), stage.layers[0], stage.inputs[0]
    keys = layer.self_attn.k_proj(layer.input_layernorm(hidden))[0].unflatten(-1, (-1, layer.self_attn.head_dim))
    cos, sin = (part[0].unsqueeze(1) for part in stage.rotary)
    first, second = keys.chunk(2, dim=-1)
    norms = (keys * cos + torch.cat((-second, first), dim=-1) * sin).abs().sum(dim=(1, 2))
    visual = stage.visual[0].nonzero()[:, 0].tolist()
    behind = [column for column in range(len(norms)) if column > visual[-1]]

    def largest(columns: list[int], number: int) -> list[int]:
        return sorted(columns, key=lambda column: -norms[column].item())[:number]

    image, text = largest(visual, method.image_pivots), largest(behind, method.text_pivots)
    text += [len(norms) - 1] * (method.text_pivots - len(text))
    states, left = stage.final_norm(stage.hidden)[0], [column for column in visual if column not in image]
    for pivot in image + text:
        near = cosine_similarity(states[left], states[pivot : pivot + 1], dim=-1)
        taken = {left[at] for at in near.sort(stable=True).indices[: method.each(stage.num[0], len(visual))].tolist()}
        left = [column for column in left if column not in taken]
    return [column for column in visual if column not in left]


@pytest.mark.parametrize("fields", [{}, {"image_pivots": 1, "text_pivots": 0}, {"image_pivots": 3, "text_pivots": 2}])
@pytest.mark.parametrize("row", [[1, "image", 5, 6, 7, 8, 9], [1, 4, "image", 3, "image", 5], [3, "image"]], ids=str)
def test_every_prompt_keeps_what_its_pivots_take_by_hand(monkeypatch, fields, row):
    model, seen = tiny_llava(side=6), []
    prune = DART.prune

    def watched(self, stage):
        kept = prune(self, stage)
        seen.append(
            (by_hand(model, stage, fields), kept.slots[0].tolist(), self.leaves(stage.num[0], stage.arriving[0]))
        )
        return kept

    monkeypatch.setattr(DART, "prune", watched)
    ids, mask = prompt([row], 36)
    with vscan.reduce(model, "dart", layers={2: 17}, **fields), torch.no_grad():
        model(ids, attention_mask=mask, pixel_values=pictures(model, row.count("image")))
    ((expected, got, number),) = seen
    assert got == expected
    assert len(got) == number


def test_padding_moves_positions_and_keeps_the_same_tokens():
    """||k||_1 depends on the angle by which a key is rotated: positions count from the item's own first token."""
    model = tiny_llava(side=6)
    rows, pixels = [[1, "image", 5, 6], [1, 3, 4, 5, 6, 7, 8, 9, "image", 7, 8, 9, 10, 11]], pictures(model, 2)
    ids, mask = prompt(rows, 36)
    with vscan.reduce(model, "dart", layers={1: 17}) as reduction, torch.no_grad():
        model(ids, attention_mask=mask, pixel_values=pixels)
        together = [row[row >= 0] - row[row >= 0][0] for row in reduction.kept()]
        for row, picture, kept in zip(rows, pixels, together, strict=True):
            model(prompt([row], 36)[0], pixel_values=picture.unsqueeze(0))
            assert reduction.kept()[0].tolist() == kept.tolist()
