"""What holds of every model that can be reduced: a new one is tried here as soon as it is in `families.FAMILIES`."""

import pytest
import torch
from contracts.calling import IN_THE_DECODER_ALONE
from contracts.families import FAMILIES, NUM_LAYERS, ROWS, Words
from helpers import close

import vscan
from vscan.checks.oracle import masked_logits, recorded
from vscan.compat import cache_of
from vscan.methods import method_class
from vscan.methods.base import Method

NUM_NEW, WORDS = 4, Words()
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
HOOKS += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")

every_rows = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def generate(model, inputs: dict, **kwargs):
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return model.generate(inputs["input_ids"], **rest, **{**options, **kwargs})


def answers(output):
    return output.sequences[:, -NUM_NEW:]


def logits_of(output):
    """[B, NUM_NEW, V]."""
    return torch.stack(output.logits, dim=1)


def columns_of(kept) -> list[list[int]]:
    """`Reduction.kept` as one list a row, counted from that row's first token, which is text and stays."""
    rows = [row[row >= 0].tolist() for row in kept]
    return [[column - row[0] for column in row] for row in rows]


def kept_of(reduction) -> list:
    return [columns_of(reduction.kept(stage)) for stage in range(len(reduction.last.segments))]


def anatomy(model) -> dict:
    """What a reduction could leave behind in every module: its class, attributes by identity, and hooks.

    A tensor counts by its name alone: a dense Qwen2.5-VL keeps one of its last prompt.
    """
    found = {}
    for name, module in model.named_modules():
        attributes = {
            key: None if isinstance(value, torch.Tensor) else id(value) for key, value in vars(module).items()
        }
        found[name] = (type(module), attributes, {hook: list(getattr(module, hook)) for hook in HOOKS})
    return found


@every_rows
@pytest.mark.parametrize("budgets", [(1.0, {1: 1.0}), (None, {0: 1.0, 2: 1.0})], ids=str)
def test_keeping_every_token_is_the_dense_model_bit_for_bit(family, rows, budgets):
    model, inputs = family.model, family.inputs(family.model, rows)
    logits, output = model(**inputs).logits, generate(model, inputs)
    with vscan.reduce(model, visual_tokens=budgets[0], layers=budgets[1], **family.vscan_fields) as reduction:
        assert torch.equal(model(**inputs).logits, logits)
        found = generate(model, inputs)
        assert reduction.last is not None
    assert torch.equal(found.sequences, output.sequences)
    assert torch.equal(logits_of(found), logits_of(output))


@pytest.mark.parametrize("ending", ["leaves", "raises", "refused"])
def test_what_was_reduced_is_dense_again_bit_for_bit(family, ending):
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    dense, before = generate(model, inputs), anatomy(model)
    if ending == "refused":
        with pytest.raises(ValueError, match=f"expected decoder layers 0 to {NUM_LAYERS - 1}, got {NUM_LAYERS}"):
            vscan.apply(model, **{**family.settings, "layers": {NUM_LAYERS: 3}})
    else:
        with pytest.raises(KeyError) if ending == "raises" else vscan.reduce(model, **family.settings):
            if ending == "raises":
                with vscan.reduce(model, **family.settings):
                    generate(model, inputs)
                    raise KeyError
            assert anatomy(model) != before
            assert not torch.equal(logits_of(generate(model, inputs)), logits_of(dense))
    assert anatomy(model) == before
    output = generate(model, inputs)
    assert torch.equal(output.sequences, dense.sequences)
    assert torch.equal(logits_of(output), logits_of(dense))
    lengths = [[cache_of(each).get_seq_length(layer) for layer in range(NUM_LAYERS)] for each in (output, dense)]
    assert lengths[0] == lengths[1]


@every_rows
def test_every_layer_caches_what_the_statistics_say(family, rows):
    model, inputs = family.model, family.inputs(family.model, rows)
    with vscan.reduce(model, **family.settings) as reduction:
        output = generate(model, inputs)
        stats = reduction.stats()
    lengths = [cache_of(output).get_seq_length(layer) for layer in range(NUM_LAYERS)]
    assert lengths == [length + NUM_NEW - 1 for length in stats.cache_lengths]
    assert [layer.keys.shape[2] for layer in cache_of(output).layers] == lengths
    text = [sum(1 if isinstance(part, int) else family.markers for part in row) for row in rows]
    per_layer = zip(*(row.tokens_per_layer for row in stats.rows), strict=True)
    assert stats.cache_lengths == [max(map(sum, zip(text, tokens, strict=True))) for tokens in per_layer]
    assert stats.cache_lengths[0] > stats.cache_lengths[1] == stats.cache_lengths[2] > stats.cache_lengths[3]
    for row in stats.rows:
        assert [len(kept) for kept in row.kept] == [tokens for _, tokens in row.stages]


def test_padding_on_either_side_keeps_the_same_tokens_and_gives_the_same_logits(family):
    model, found = family.model, []
    for side in ("left", "right"):
        with vscan.reduce(model, **family.settings) as reduction:
            logits = model(**family.inputs(model, ROWS["unequal"], side)).logits
            valid = reduction.kept() >= 0
            found.append((kept_of(reduction), [of_row[kept] for of_row, kept in zip(logits, valid, strict=True)]))
    assert found[0][0] == found[1][0]
    for left, right in zip(found[0][1], found[1][1], strict=True):
        close(right, left)


def test_a_batch_equals_its_rows_run_alone(family):
    model, rows = family.model, ROWS["unequal"]
    with vscan.reduce(model, **family.settings) as reduction:
        together = generate(model, family.inputs(model, rows))
        kept = kept_of(reduction)
        for number, row in enumerate(rows):
            alone = generate(model, family.inputs(model, [row]))
            assert torch.equal(answers(together)[number], answers(alone)[0])
            close(logits_of(together)[number], logits_of(alone)[0])
            if any(isinstance(part, str) for part in row):
                assert [stage[number] for stage in kept] == [stage[0] for stage in kept_of(reduction)]
            else:
                assert [stage[number] for stage in kept] == [list(range(len(row)))] * len(kept)


def test_two_reductions_at_once_are_refused(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])
    with vscan.reduce(model, **family.settings) as reduction:
        before, expected = anatomy(model), generate(model, inputs)
        for settings in (family.settings, {"layers": {2: 3}}, {"method": "downsample", "visual_tokens": 5}):
            with pytest.raises(ValueError, match="expected a dense model, got one that is reduced already"):
                vscan.apply(model, **settings)
        assert anatomy(model) == before
        assert torch.equal(logits_of(generate(model, inputs)), logits_of(expected))
        assert reduction.last is not None


def settings_of(family, name: str) -> dict:
    """A reduction by a method, wherever it reduces."""
    settings = {"method": name, **family.budgets, **family.fields(name)}
    if name in IN_THE_DECODER_ALONE:
        del settings["visual_tokens"]
    if method_class(name).prepare is not Method.prepare:
        settings["processor"] = WORDS
    return settings


@pytest.fixture(params=[*vscan.METHODS, "sparsevlm 2.0"])
def method(request, family):
    """A reduction by a method; what needs a [CLS] token is refused where there is none."""
    name, _, release = request.param.partition(" ")
    settings = settings_of(family, name) | ({"release": release} if release else {})
    if method_class(name)().needs.cls and not family.has_cls:
        with pytest.raises(
            ValueError, match=f"^method '{name}': expected a vision encoder with a .CLS. token, got one wi"
        ):
            vscan.apply(family.model, **settings)
        pytest.skip("refused, as it has to be")
    return settings


def test_what_every_method_leaves_is_planned_beforehand_and_undone(family, method):
    model = family.model
    inputs = family.inputs(model, ROWS["unequal"])
    model(**inputs)  # the first call of a model leaves things on it
    before = anatomy(model)
    with vscan.reduce(model, **method) as reduction:
        model(**inputs)
        plan, stats = reduction.plan(**inputs), reduction.stats()
    for number, row in enumerate(stats.rows):
        assert row.tokens_per_layer == [stage.num_visual[number] for stage in plan.of_layers]
    assert stats.cache_lengths == [stage.length for stage in plan.of_layers]
    assert anatomy(family.model) == before


def test_a_batch_equals_its_items_alone_and_the_masking_oracle_for_every_method(family, method):
    model, rows = family.model, ROWS["unequal"]
    inputs, of_rows = family.inputs(model, rows), [family.inputs(model, [row]) for row in rows]
    with vscan.reduce(model, **method) as reduction, recorded(model) as records:
        logits = model(**inputs).logits[:, -1]
        kept = kept_of(reduction)
        for number, row in enumerate(rows):
            close(logits[number], model(**of_rows[number]).logits[0, -1])
            if any(isinstance(part, str) for part in row):
                assert [stage[number] for stage in kept] == [stage[0] for stage in kept_of(reduction)]
    if method != settings_of(family, "sparsevlm"):  # what is recycled stands at no place of the dense prompt
        none = inputs["input_ids"].new_empty(len(rows), 0)
        close(logits, masked_logits(model, records[0], none)[0][:, 0])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_cls])
def test_a_method_that_keeps_fewer_than_asked_fills_no_placeholder_with_nothing(name):
    """PruMerge keeps as many as stand out: what layer 0 is given is what it kept, padding and plan included."""
    model, inputs = FAMILIES[name].model, FAMILIES[name].inputs(FAMILIES[name].model, ROWS["unequal"])
    with vscan.reduce(model, "prumerge", visual_tokens=30, adaptive=True) as reduction:
        plan = reduction.plan(**inputs)
        model(**inputs)
        (segment,) = reduction.last.segments
        kept = segment.prompt.kept.sum(dim=1).tolist()
    assert plan.stages[0].num_visual == segment.num_visual == kept == segment.visual.sum(dim=1).tolist()
    views = segment.prompt.num_views
    assert all(number < 30 * of_row for number, of_row in zip(kept, views, strict=True) if of_row)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("method", ["vispruner", "fastervlm", "scope"])
def test_a_tower_of_windows_ranks_by_its_last_block(name, method):
    """The last block but one, where these methods read a CLIP tower, sees windows alone."""
    with vscan.reduce(FAMILIES[name].model, method, visual_tokens=0.5) as reduction:
        assert reduction.method.attention_layer == -1
