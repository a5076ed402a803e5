"""Static caches on every model: every layer as long as what it is given of a prompt, and an answer."""

import pytest
import torch
from contracts.families import NUM_LAYERS, ROWS
from contracts.test_family import NUM_NEW, answers, generate, logits_of
from helpers import close
from transformers import StaticCache

import vscan
from vscan.compat import CACHE, cache_of

STATIC = {"cache_implementation": "static", "disable_compile": True}


def allocated(cache) -> list[int]:
    """Columns that every layer takes in memory."""
    return [layer.keys.shape[2] for layer in cache.layers]


def given(reduction) -> list[int]:
    """Columns of the last prompt that every layer saw."""
    starts = reduction.last.by_start
    return [starts[max(start for start in starts if start <= layer)].length for layer in range(NUM_LAYERS)]


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_generated_answer_is_the_same_and_no_layer_is_longer_than_it_must_be(family, rows):
    model, inputs = family.model, family.inputs(family.model, rows)
    with vscan.reduce(model, **family.settings) as reduction:
        expected, found = generate(model, inputs), generate(model, inputs, **STATIC)
        lengths, stats = given(reduction), reduction.stats()
    assert torch.equal(answers(found), answers(expected))
    close(logits_of(found), logits_of(expected), 2e-5)
    cache = cache_of(found)
    assert isinstance(cache, StaticCache)
    assert lengths[0] > lengths[1] > lengths[3]
    assert allocated(cache) == [length + NUM_NEW - 1 for length in lengths]
    assert stats.cache_lengths == lengths
    num_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stats.cache_bytes == num_bytes // len(rows)


def test_a_dense_prompt_has_room_in_every_layer(family):
    """Nothing is taken off where nothing is dropped."""
    model, inputs = family.model, family.inputs(family.model, [[1, 4, 9, 6]])
    with vscan.reduce(model, **family.settings):
        found = generate(model, inputs, **STATIC)
    assert allocated(cache_of(found)) == [4 + NUM_NEW - 1] * NUM_LAYERS


def test_one_is_made_of_a_plan(family):
    """It takes the prompt through the model's own forward, and as many tokens as were asked for."""
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    with vscan.reduce(model, **family.settings) as reduction:
        plan = reduction.plan(**inputs)
        cache = vscan.static_cache(model, plan, max_new_tokens=2)
        logits = model(**inputs, **{CACHE: cache}, use_cache=True).logits
        close(logits, model(**inputs).logits, 2e-5)
        assert allocated(cache) == [stage.length + 2 for stage in plan.of_layers]
    with pytest.raises(ValueError, match="max_new_tokens: expected at least 1, got 0"):
        vscan.static_cache(model, plan, max_new_tokens=0)


def test_one_that_is_too_short_is_refused_before_a_layer_runs(family):
    """Naming the layer and both numbers; on a GPU the write behind its end would be an assertion of the device."""
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    with vscan.reduce(model, **family.settings) as reduction:
        plan = reduction.plan(**inputs)
        cache = vscan.static_cache(model, plan, max_new_tokens=1)
        cache.layers[2].max_cache_len = 3
        length = plan.of_layers[2].length
        with pytest.raises(ValueError, match=f"room for the {length} columns of the prompt in layer 2, got one of 3"):
            model(**inputs, **{CACHE: cache}, use_cache=True)


def test_one_that_was_reset_takes_no_longer_prompt(family):
    model = family.model
    short, long = (family.inputs(model, rows) for rows in ([[1, "wide", 5]], [[1, "wide", *range(3, 9), "tall", 4]]))
    with vscan.reduce(model, **family.settings) as reduction:
        cache = vscan.static_cache(model, reduction.plan(**short), max_new_tokens=1)
        model(**short, **{CACHE: cache}, use_cache=True)
        cache.reset()
        with pytest.raises(ValueError, match="expected a static cache with room for the"):
            model(**long, **{CACHE: cache}, use_cache=True)
        expected = model(**short).logits
        close(model(**short, **{CACHE: cache}, use_cache=True).logits, expected, 2e-5)
