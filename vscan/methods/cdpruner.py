"""CDPruner (arXiv 2506.10967, NeurIPS 2025): a determinantal point process, conditioned on the question."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..select.scan import top
from .base import Kept, Method, Views
from .shared.cover import cosines
from .shared.question import Question, questions_of, reader, seen_by, without_instructions

OFFSET = 1e-6  # of relevances, as published; scores that differ by less are all alike, but for rounding
EXHAUSTED = 7e-6  # share of r_j^2: a token of which less is left lies in the span of what is chosen, but for rounding


def scaled(scores: Tensor) -> Tensor:
    """r = (g - min + 1e-6) / (max - min) of every view, [V, N]; 1 where all are equal."""
    least, most = scores.aminmax(dim=-1, keepdim=True)
    return torch.where(most - least > OFFSET, (scores - least + OFFSET) / (most - least), 1)


@torch.no_grad()
def select(similarity: Tensor, relevance: Tensor, num: int) -> Tensor:
    """Greedy MAP of a DPP with the kernel L = diag(r) S diag(r), by its Cholesky factor, row after row.

    d_i^2 = L_ii; every round takes the largest d_j^2, the earlier one on ties; e_i = (L_ji - sum_t C_tj C_ti) / d_j is
    the next row of C, and d_i^2 falls by e_i^2. Where the rank is exhausted, what is left comes by its relevance.

    Args:
        similarity: S, fp32 [V, N, N], symmetric, positive semi-definite.
        relevance: r, fp32 [V, N].
        num: tokens to choose, at most N.

    Returns:
        Long [V, num], in the order of choice.
    """
    num_views, num_tokens = relevance.shape
    first_row = torch.arange(num_views, device=relevance.device) * num_tokens
    squares = relevance.square() * similarity.diagonal(dim1=1, dim2=2)
    least, last = EXHAUSTED * squares, -1.0 - top(relevance, num_tokens).argsort(dim=1)
    factor, taken, picks = relevance.new_zeros(num_views, num, num_tokens), torch.zeros_like(relevance), []
    for turn in range(num):
        pivots, pick = (torch.where(squares > least, squares, last) + taken).max(dim=1, keepdim=True)
        picks.append(pick)
        taken.scatter_(1, pick, -torch.inf)
        row = similarity.flatten(0, 1).index_select(0, pick[:, 0] + first_row) * relevance * relevance.gather(1, pick)
        known = factor[:, :turn]
        row = row - (known.gather(2, pick.unsqueeze(1).expand(-1, turn, -1)).transpose(1, 2) @ known)[:, 0]
        factor[:, turn] = torch.where(pivots > 0, row * pivots.clamp(min=torch.finfo(torch.float32).tiny).rsqrt(), 0)
        squares = squares - factor[:, turn].square()
    return torch.cat(picks, dim=1)


@dataclass(frozen=True)
class CDPruner(Method):
    """Tokens that are relevant and unlike each other: maximise det(L) over the kept, L_ij = r_i cos(x_i, x_j) r_j.

    x is what the decoder would see. r is -cos(e_i, q), min-max scaled over the view: e the features through CLIP's last
    norm and projection, q CLIP's embedding of the question, the mean over its segments. The sign is on purpose: CLIP's
    patches are least like the text where they show what it says. Without a text encoder e is x, q are the question's
    rows of the decoder's embedding table, and the sign is positive: the authors say so of Qwen2.5-VL, where their code
    is not public. A sentence that asks for a short answer is left out.

    The published code scales over all crops and pictures of a batch, here every view alone, crops too; it cuts long
    questions without the marks of begin and end, and gives fewer tokens than asked for, without a word, where the rank
    of the tokens is exhausted: here the most relevant of the rest come then.

    Args:
        relevance: "clip" or "embeddings"; "auto" is CLIP where a folder of a whole one is known.
        clip: that folder; None takes the model's tower's.
        flipped: whether what is least like the question is the most relevant; None: by CLIP only.
    """

    relevance: Literal["auto", "clip", "embeddings"] = "auto"
    clip: str | None = None
    flipped: bool | None = None

    def prepare(self, model: nn.Module, processor: Any):
        read = reader("cdpruner", model, processor, self.relevance, self.clip)
        return lambda texts: read([without_instructions(text) for text in texts])

    def encode(self, views: Views, num: int) -> Kept:
        tokens = views.project(views.features)
        questions = questions_of("cdpruner", views.text)
        relevance = scaled(self.likeness(questions, seen_by(questions, views.features, tokens)))
        slots = select(cosines(tokens), relevance, num).sort(dim=1).values
        return Kept(slots, tokens.take_along_dim(slots.unsqueeze(-1), dim=1))

    def likeness(self, questions: list[Question], seen: Tensor) -> Tensor:
        """g: [V, N] fp32, the mean cosine with what a question is, with its sign.

        Args:
            seen: [V, N, C].
        """
        by_clip = questions[0].see is not None
        asked = [question.pooled if by_clip else question.words[0] for question in questions]
        means = torch.stack([normalize(rows, dim=-1).mean(dim=0) for rows in asked]).to(seen.device)
        found = (normalize(seen, dim=-1) @ means.unsqueeze(-1)).squeeze(-1)
        return -found if (by_clip if self.flipped is None else self.flipped) else found
