"""CDPruner where recorded data says nothing: no rank left, no relevance, exact budgets; and what it reads of a text."""

import pytest
import torch

from vscan.methods.base import Views
from vscan.methods.cdpruner import CDPruner, scaled, select
from vscan.methods.shared.cover import cosines
from vscan.methods.shared.question import Question


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(similarity: torch.Tensor, relevance: torch.Tensor, num: int) -> list[int]:
    """The token that makes the determinant largest, every time, in float64."""
    kernel, picks = (relevance.outer(relevance) * similarity).double(), []
    for _ in range(num):
        found = [
            -1.0 if token in picks else torch.linalg.det(kernel[[*picks, token]][:, [*picks, token]]).item()
            for token in range(len(kernel))
        ]
        picks.append(found.index(max(found)))
    return picks


@pytest.mark.parametrize("num", [1, 2, 6])
def test_the_determinant_grows_most(num):
    tokens, relevance = random(3, 14, 20), random(3, 14, seed=1).abs() + 0.1
    similarity = cosines(tokens)
    found = select(similarity, relevance, num)
    assert found.tolist() == [by_hand(*pair, num) for pair in zip(similarity, relevance, strict=True)]


def test_beyond_the_rank_the_most_relevant_come_and_none_twice():
    tokens, relevance = random(2, 12, 3), random(2, 12, seed=1).abs() + 0.1
    for num in (3, 4, 9, 12):
        for picks, row in zip(select(cosines(tokens), relevance, num).tolist(), relevance, strict=True):
            order = row.sort(descending=True, stable=True).indices.tolist()
            assert picks[3:] == [token for token in order if token not in picks[:3]][: num - 3]
            assert len(set(picks)) == num


def test_twins_come_last_and_the_earlier_one_first():
    tokens = torch.eye(3)[[1, 1, 0, 1, 2, 0]].unsqueeze(0)
    relevance = torch.tensor([[1.0, 1, 2, 1, 1, 2]])
    assert select(cosines(tokens), relevance, 6).tolist() == [[2, 0, 4, 5, 1, 3]]
    assert select(torch.ones(1, 4, 4), torch.ones(1, 4), 4).tolist() == [[0, 1, 2, 3]]
    assert select(torch.zeros(1, 3, 3), torch.zeros(1, 3), 3).tolist() == [[0, 1, 2]]


def test_relevance_is_scaled_in_every_view_and_1_where_all_are_alike():
    scores = torch.tensor([[1.0, 3, 2], [5, 5, 5], [-1, 0, -3]])
    expected = torch.tensor([[0.0, 1, 0.5], [1, 1, 1], [2 / 3, 1, 0]])
    torch.testing.assert_close(scaled(scores), expected, atol=2e-6, rtol=0)
    assert scaled(scores).amin() > 0


def views_of(tokens: torch.Tensor, questions: list | None) -> Views:
    return Views(tokens, tokens, {}, (1, tokens.shape[1]), lambda rows: rows, text=questions)


@pytest.mark.parametrize(("flipped", "first"), [(None, 1), (False, 1), (True, 2)])
def test_one_token_is_the_one_that_the_question_is_about(flipped, first):
    tokens, question = (
        torch.tensor([[[1.0, 1], [0, 1], [1, 0]]]),
        Question(torch.tensor([[0.0, 3]]), [torch.tensor([[0.0, 3]])]),
    )
    assert CDPruner(flipped=flipped).encode(views_of(tokens, [question]), 1).slots.tolist() == [[first]]


def test_clip_sees_features_and_turns_the_sign():
    tokens = torch.tensor([[[1.0, 1], [0, 1], [1, 0]]])
    question = Question(torch.tensor([[0.0, 3]]), [torch.tensor([[5.0, 0]])], see=lambda features: features.flip(-1))
    assert CDPruner().encode(views_of(tokens, [question]), 1).slots.tolist() == [[1]]
    assert CDPruner(flipped=False).encode(views_of(tokens, [question]), 1).slots.tolist() == [[2]]


def test_the_words_of_the_decoder_count_alike_and_segments_of_clip_too():
    tokens, rows = random(1, 9, 4), random(3, 4, seed=1)
    mean = torch.stack([torch.cosine_similarity(tokens[0], row, dim=-1) for row in rows]).mean(dim=0)
    plain = CDPruner().likeness([Question(rows[:1], [rows])], tokens)
    by_clip = CDPruner().likeness([Question(rows, [rows[:1]] * 3, see=lambda features: features)], tokens)
    torch.testing.assert_close(plain[0], mean)
    torch.testing.assert_close(by_clip[0], -mean)


def test_a_view_without_a_text_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^method 'cdpruner' reads text: expected one beside every view, got none$"):
        CDPruner().encode(views_of(random(1, 4, 2), None), 2)
