"""What a method that reads text is given, on every model: the text of the prompt that a picture belongs to."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from contracts.families import ROWS, names_of
from qwen_helpers import image, inputs_of, tiny_qwen, video

import vscan
from vscan.methods.base import Kept, Method, Schedule

# A word a prompt of ROWS["unequal"], and the token that each stands for.
WORDS = ["two", "three", "none", "five"]
STARTS = {"two": 2, "three": 3, "none": 0, "five": 5}


@dataclass(frozen=True)
class Told(Method):
    """Keeps tokens from the one on that a prompt's text names."""

    def prepare(self, model, processor):
        return lambda texts: [STARTS.get(text, len(text)) for text in texts]

    def encode(self, views, num):
        first = torch.tensor(views.text).unsqueeze(1)
        return Kept(first + torch.arange(num))

    def schedule(self, average, num_layers, num_tokens):
        return Schedule(average)


@pytest.fixture(autouse=True)
def told(monkeypatch):
    monkeypatch.setitem(vscan.METHODS, "told", Told)


def budget(family):
    return family.budgets["visual_tokens"]


@pytest.mark.parametrize("generates", [False, True])
def test_every_picture_is_read_beside_its_own_prompt(family, generates):
    """Alone with its text, each prompt keeps the tokens that it keeps in the batch, and another text keeps others."""
    model = family.model

    def kept(rows, texts):
        inputs = family.inputs(model, rows)
        with vscan.reduce(model, "told", visual_tokens=budget(family), text=texts) as reduction:
            if generates:
                ids = inputs.pop("input_ids")
                model.generate(ids, **inputs, max_new_tokens=1, do_sample=False)
            else:
                model(**inputs)
            prompt = reduction.last.segments[0].prompt
            return [left[visual].tolist() for visual, left in zip(prompt.visual, prompt.kept, strict=True)]

    rows = ROWS["unequal"]
    together = kept(rows, WORDS)
    for row, word, found in zip(rows, WORDS, together, strict=True):
        if names_of([row]):
            assert found == kept([row], [word])[0]
            assert found != kept([row], ["seven--"])[0]


def test_without_a_text_it_is_what_follows_the_last_picture(family):
    """The tokenizer is asked for the tokens behind it, and for nothing else."""
    model, asked = family.model, []

    def decode(ids, skip_special_tokens):
        asked.append((list(ids), skip_special_tokens))
        return "two"

    processor = SimpleNamespace(tokenizer=SimpleNamespace(decode=decode))
    rows = [[1, "wide", 5, 6, 7], [1, 9, "tall", 4]]
    inputs = family.inputs(model, rows)
    with vscan.reduce(model, "told", visual_tokens=budget(family), processor=processor):
        model(**inputs)
    times = len(asked) // 2  # clips and images are encoded one after the other
    tails = [ids[-1:] if number % 2 else ids[-3:] for number, (ids, _) in enumerate(asked)]
    assert tails == [[5, 6, 7], [4]] * times
    assert [len(ids) - family.markers // 2 for ids, _ in asked] == [3, 1] * times
    assert all(skip for _, skip in asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "method 'told' reads text: expected text=[one a prompt], or processor= to decode the prompts with, got"),
        (["two", "three"], "text: expected one for each of the 1 prompts, got 2"),
    ],
)
def test_what_is_missing_is_said_in_one_line(family, text, message):
    model = family.model
    inputs = family.inputs(model, ROWS["one"])
    reduced = vscan.reduce(model, "told", visual_tokens=budget(family), text=text)
    with reduced, pytest.raises(ValueError, match=message.replace("[", r"\[")):
        model(**inputs)


def test_the_plan_reads_it_too(family):
    model = family.model
    inputs = family.inputs(model, ROWS["unequal"])
    with vscan.reduce(model, "told", visual_tokens=budget(family), text=WORDS) as reduction:
        plan = reduction.plan(**inputs)
        model(**inputs)
        assert [stage.num_visual for stage in plan.stages] == [s.num_visual for s in reduction.last.segments]


def test_images_and_videos_of_one_prompt_are_both_read_beside_it():
    model = tiny_qwen()
    inputs = inputs_of([[1, image(8, 12), 5, video(2, 8, 8), 6], [1, video(3, 8, 6), 7]])
    with vscan.reduce(model, "told", visual_tokens=0.25, text=["two", "three"]) as reduction:
        model(**inputs)
        prompt = reduction.last.segments[0].prompt
    kept = [left[visual].tolist() for visual, left in zip(prompt.visual, prompt.kept, strict=True)]
    assert kept == [run(2, 24, 96) + run(2, 16, 64) * 2, run(3, 12, 48) * 3]


def run(start: int, num: int, num_tokens: int) -> list[bool]:
    """A quarter of a view's tokens from one on."""
    return [start <= token < start + num for token in range(num_tokens)]
