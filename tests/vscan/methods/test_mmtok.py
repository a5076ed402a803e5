"""MMTok where recorded data says nothing: words of other models, padding, what is covered, exact budgets."""

import pytest
import torch
from contracts.families import Words
from helpers import tiny_llava
from qwen_helpers import tiny_qwen

from vscan.methods.base import Views
from vscan.methods.mmtok import MMTok, coverage, keywords, select
from vscan.methods.shared.grid import padding
from vscan.methods.shared.question import Question


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_coverage_is_that_of_each_row_alone():
    """Words of unequal number: rows of zeros are added, which cover nothing."""
    words, tokens, features = [random(2, 5), random(4, 5, seed=1)], random(2, 7, 5, seed=2), random(2, 7, 3, seed=3)
    found = coverage(words, tokens, features, 0.1, 0.3, 0.5)
    assert found.shape == (2, 7, 4 + 7)
    for view in range(2):
        for number in range(4):
            expected = torch.zeros(7)
            if number < len(words[view]):
                cosine = torch.cosine_similarity(tokens[view], words[view][number], dim=-1)
                expected = (cosine / 0.1).softmax(dim=0) / len(words[view])
            torch.testing.assert_close(found[view, :, number], expected)
        for token in range(7):
            cosine = torch.cosine_similarity(features[view], features[view, token], dim=-1)
            torch.testing.assert_close(found[view, :, 4 + token], 0.5 / 7 * (cosine / 0.3).softmax(dim=0))


def test_excluded_tokens_come_when_no_other_is_left():
    nearness = coverage([random(2, 4)], random(1, 8, 4, seed=1), random(1, 8, 4, seed=2), 0.02, 0.2, 10.0)
    excluded = torch.tensor([[True, False, True, True, False, False, True, False]])
    found = select(nearness, 8, excluded)[0].tolist()
    assert sorted(found[:4]) == [1, 4, 5, 7]
    assert sorted(found[4:]) == [0, 2, 3, 6]
    assert select(nearness, 8)[0, :4].tolist() != found[:4]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        ([("row", 0), ("row", 3)], [0, 1, 2, 9, 10, 11]),
        ([("row", 1)], []),  # grey within the picture
        ([("column", 0), ("column", 2)], [0, 2, 3, 5, 6, 8, 9, 11]),
        ([("row", number) for number in range(4)], list(range(12))),
    ],
)
def test_padding_is_outer_rows_and_columns_of_the_mean_colour(lines, expected):
    pixels = torch.ones(2, 3, 4 * 4, 3 * 4)
    for kind, number in lines:
        part = slice(4 * number, 4 * number + 4)
        (pixels[0, :, part] if kind == "row" else pixels[0, :, :, part]).fill_(-0.0113)
    found = padding(pixels, (4, 3))
    assert found[0].nonzero()[:, 0].tolist() == expected
    assert not found[1].any()
    assert padding(torch.zeros(2, 12, 40), (4, 3)).sum() == 0


def test_padded_tokens_stay_only_where_they_may():
    pixels = torch.ones(1, 3, 12, 8)
    pixels[:, :, :4] = 0
    tokens, words = random(1, 6, 4), random(2, 4, seed=1)
    views = Views(pixels, tokens, {}, (3, 2), lambda rows: rows, tokens[:, 0], text=[Question(words[:1], [words])])
    assert MMTok().encode(views, 4).slots.tolist() == [[2, 3, 4, 5]]
    assert any(MMTok(padded=True).encode(views, num).slots.min() < 2 for num in range(1, 5))


def test_a_text_model_without_clip_keeps_all_words_and_is_told_that_they_are_a_question():
    seen = []

    class Recording(Words):
        def __call__(self, text, add_special_tokens):
            seen.append(text)
            return super().__call__(text, add_special_tokens)

    for model in (tiny_llava(num_layers=1, vision_layers=2, side=4), tiny_qwen()):
        read = MMTok().prepare(model, Recording())
        assert [len(question.words) for question in read(["What is the red thing?", "  "])] == [1, 1]
    assert seen == ["red", "thing", "see", "in", "this", "image"][:2] + keywords(
        "What do you see in this image?"
    ).split() + [
        "Question: What is the red thing?",
        "Question: What do you see in this image?",
    ]


@pytest.mark.parametrize(("has_cls", "tau"), [(True, 0.02), (False, 0.01)])
def test_the_temperature_of_words_is_the_published_one_of_the_model(has_cls, tau):
    tokens, words = random(1, 30, 6), random(3, 6, seed=1)
    cls = tokens[:, 0] if has_cls else None
    views = Views(tokens, tokens, {}, (5, 6), lambda rows: rows, cls, text=[Question(words[:1], [words])])
    expected = select(coverage([words], tokens, tokens, tau, 0.2, 0.5), 5).sort(dim=1).values
    assert MMTok().encode(views, 5).slots.equal(expected)
