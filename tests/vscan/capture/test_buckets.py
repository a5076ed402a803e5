"""Which prompts share a recording."""

import pytest
import torch
from helpers import tiny_llava, tiny_next

import vscan
from vscan.capture.asked import check_asked
from vscan.capture.buckets import ANSWER, TEXT, TOKENS, Bucket, Uncaptured, bucket_of, check_bound, rounded
from vscan.methods.base import Method
from vscan.methods.sparsevlm import SparseVLM
from vscan.plan import Plan
from vscan.prompt import VisualPrompt

EMBEDDINGS = {"axes": 0, "width": 32, "dtype": torch.float32, "device": torch.device("cpu")}


def prompt_of(texts: list[int], visual: list[int], length: int | None = None, num_kept=()) -> VisualPrompt:
    valid = [text + number for text, number in zip(texts, visual, strict=True)]
    columns = torch.zeros(len(texts), length or max(valid), dtype=torch.bool)
    kept = None if num_kept == () else columns
    return VisualPrompt(columns, [1] * len(texts), visual, visual if num_kept == () else num_kept, valid, kept)


def bucket(texts, visual, length=None, room=10, left=None, **kept) -> Bucket:
    prompt = prompt_of(texts, visual, length, **kept)
    return bucket_of(prompt, prompt.num_visual if left is None else left, room, **EMBEDDINGS)


@pytest.mark.parametrize(("number", "step", "expected"), [(0, 32, 32), (1, 32, 32), (32, 32, 32), (33, 32, 64)])
def test_numbers_are_rounded_up(number, step, expected):
    assert rounded(number, step) == expected


def test_text_and_answers_are_rounded_up_and_visual_tokens_are_not():
    found = bucket([5], [64])
    assert (found.text, found.length, found.room, found.num_visual) == (TEXT, 64 + TEXT, ANSWER, (64,))
    assert found == bucket([TEXT], [64], room=ANSWER)
    assert found != bucket([TEXT + 1], [64])
    assert found != bucket([5], [63])
    assert found != bucket([5], [64], room=ANSWER + 1)


def test_every_item_and_all_padding_of_the_prompt_fits():
    for texts, visual, length in [([5, 70], [64, 0], None), ([5, 3], [64, 128], None), ([5], [64], 200)]:
        found, prompt = bucket(texts, visual, length), prompt_of(texts, visual, length)
        assert found.length >= prompt.visual.shape[1]
        assert all(bound >= valid for bound, valid in zip(found.num_valid, prompt.num_valid, strict=True))
        assert max(found.num_valid) <= found.length


def test_a_number_that_depends_on_the_picture_is_rounded_up_below_all():
    """Where some are dropped, the bucket's plan must drop some: else dropped placeholders would pass for tokens."""
    found = bucket([5, 5, 5], [64, 64, 64], left=[20, 50, 64], num_kept=None)
    assert found.num_kept == (TOKENS, 63, 64)
    assert found.length == 64 + TEXT + TOKENS
    assert bucket([5], [64], left=[20], num_kept=[20]).num_kept == (20,)


def test_the_plan_of_a_bucket_bounds_that_of_its_prompts():
    model = tiny_llava(num_layers=4, vision_layers=4, side=8)
    with vscan.reduce(model, visual_tokens=20, layers={1: 9, 3: 4}, local_layer=1) as reduction:
        prompt = prompt_of([5, 9], [64, 128], num_kept=[20, 40])
        prompt.num_views[1] = 2
        exact = Plan.of(reduction.fitted, prompt)
        found = bucket_of(prompt, exact.stages[0].num_visual, 10, **EMBEDDINGS).plan(reduction.fitted)
    assert [stage.num_visual for stage in found.stages] == [stage.num_visual for stage in exact.stages]
    assert [stage.length for stage in found.stages] == [40 + TEXT, 18 + TEXT, 8 + TEXT]
    check_bound(exact, found, reduction.fitted.method)


@pytest.mark.parametrize(("layers", "method"), [({1: 0.5}, Method()), ({1: 9}, SparseVLM())])
def test_what_the_bound_cannot_say_fits_no_bucket(layers, method):
    with vscan.reduce(tiny_next(), visual_tokens=20, layers=layers, local_layer=1) as reduction:
        plans = []
        for num_kept in ([40], [64]):
            prompt = prompt_of([5], [100], num_kept=num_kept)
            prompt.num_views = [3]
            plans.append(Plan.of(reduction.fitted, prompt))
    with pytest.raises(Uncaptured, match="depends on the picture"):
        check_bound(*plans, method)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [({"max_new_tokens": 7}, 7), ({"max_length": 50}, 10), ({"max_length": 30}, 1), ({}, 20)],
)
def test_how_long_an_answer_may_get(keywords, expected):
    assert check_asked(tiny_llava(num_layers=4), keywords, 40) == expected
