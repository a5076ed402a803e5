"""MMTok (arXiv 2508.18264, ICLR 2026): tokens that cover the words of the question and the rest of the picture."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from ..checks.selftest_tower import clip_towers_of
from .base import Kept, Method, Views
from .shared.cover import cover
from .shared.grid import padding
from .shared.question import Question, questions_of, token_rows, without_instructions

STOP_WORDS = """
    a an the is are was were be been being have has had do does did it they he she we you i what where when why how who
    which and or but so if then question answer to for with by from at into onto upon
"""
NO_QUESTION = "What do you see in this image?"


def keywords(text: str) -> str:
    """The words of a question that are no stop words; where that are none, the question."""
    text = without_instructions(text)
    return " ".join(word for word in re.findall(r"\w+", text) if word.lower() not in STOP_WORDS.split()) or text


def coverage(
    words: list[Tensor], tokens: Tensor, features: Tensor, tau_text: float, tau_vision: float, alpha: float
) -> Tensor:
    """How well every token covers every word and every token.

    Args:
        words: Z of every view, [m, D].
        tokens: V, [V, N, D], as the decoder sees them.
        features: F, [V, N, C].

    Returns:
        fp32 [V, N, R]: softmax(Z V^T / tau_text) / m of the words, rows of zeros for those that others have more, and
        alpha softmax(F F^T / tau_vision) / N of the tokens, all cosines, each row over the N tokens.
    """
    numbers = torch.tensor([len(rows) for rows in words])
    padded = normalize(pad_sequence([rows.float() for rows in words], batch_first=True), dim=-1)
    weights = (torch.arange(padded.shape[1]) < numbers.unsqueeze(1)) / numbers.unsqueeze(1)  # V m
    unit, own = normalize(tokens.float(), dim=-1), normalize(features.float(), dim=-1)
    weights, padded = weights.to(unit.device), padded.to(unit.device)
    of_words = (padded @ unit.transpose(1, 2) / tau_text).softmax(dim=-1) * weights.unsqueeze(-1)
    of_tokens = (own @ own.transpose(1, 2) / tau_vision).softmax(dim=-1) * (alpha / tokens.shape[1])
    return torch.cat((of_words, of_tokens), dim=1).transpose(1, 2).contiguous()


def select(nearness: Tensor, num: int, excluded: Tensor | None = None) -> Tensor:
    """Greedy maximum coverage.

    Args:
        nearness: of `coverage`.
        num: tokens to choose, at most N.
        excluded: bool [V, N], tokens that come when no other is left.

    Returns:
        Long [V, num], in the order of choice.
    """
    if excluded is None:
        return cover(nearness, num)
    last = excluded * -(1 + nearness.amax(dim=1).sum(dim=1, keepdim=True))  # no gain is as large
    return cover(nearness, num, lambda gains: gains + last)


@dataclass(frozen=True)
class MMTok(Method):
    """T times the token that adds most to sum_r max_{j kept} M_rj; r are the question's words and all tokens.

    M = [P; alpha Q], P = softmax(Z V^T / tau_text) / m of words Z, rows of the decoder's embedding table, and tokens V
    as the decoder sees them; Q = softmax(F F^T / tau_vision) / N of the tower's features F, all by cosine. Words are
    those of the question without stop words and without the sentence that asks for a short answer.

    The published code hands question and padding over in global variables, so that a batch has the last ones, and
    leaves padding out by the name of the checkpoint: here each view has its prompt's question, and padding is what the
    pixels show of it. Qwen2.5-VL's text keeps its stop words, as published; its F, there the mean of what a merged
    token consists of, is here the merged token.

    Args:
        alpha: weight of the tokens' coverage.
        tau_text: temperature of words; None: 0.02, and 0.01 without a CLIP tower, as published.
        tau_vision: temperature of tokens.
        padded: whether tokens in the square padding of a picture may stay.
    """

    alpha: Annotated[float, (0, None)] = 0.5
    tau_text: float | None = None
    tau_vision: float = 0.2
    padded: bool = False

    def prepare(self, model: nn.Module, processor: Any):
        rows, has_clip = token_rows("mmtok", model, processor), bool(clip_towers_of(model))

        def question(text: str) -> Question:
            text = text.strip() or NO_QUESTION
            words = rows(keywords(text).split()) if has_clip else rows([f"Question: {text}"])
            return Question(words.mean(dim=0, keepdim=True), [words])

        return lambda texts: [question(text) for text in texts]

    def encode(self, views: Views, num: int) -> Kept:
        tokens = views.project(views.features)
        words = [question.words[0] for question in questions_of("mmtok", views.text)]
        tau_text = self.tau_text or (0.01 if views.cls is None else 0.02)
        nearness = coverage(words, tokens, views.features, tau_text, self.tau_vision, self.alpha)
        excluded = None if self.padded or views.cls is None else padding(views.pixels, views.grid).to(tokens.device)
        slots = select(nearness, num, excluded).sort(dim=1).values
        return Kept(slots, tokens.take_along_dim(slots.unsqueeze(-1), dim=1))
