"""EADP (ECCV 2026): tokens that cover what the telling words of the question point at."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .base import Kept, Method, Needs, Views
from .shared.cover import cosines, cover
from .shared.crops import quotas, share_out
from .shared.grid import smoothed
from .shared.question import Question, questions_of, reader, seen_by, without_instructions

SHARPNESS, SHARE, TEMPERATURE = 100, 0.2, 0.01 + 1e-6  # as published
OFFSET = 1e-6  # of scaled scores, as published; scores that differ by less are all alike, but for rounding


def local(seen: Tensor, words: Tensor, sign: int) -> Tensor:
    """What the most telling words say about every token.

    The entropy of softmax_i(100 s_il) over the tokens is low where a word points at few of them. Of L words the
    floor(0.2 L) of least entropy H count, at least one, by softmax(-H / 0.01).

    Args:
        seen: unit vectors [N, C] of one view.
        words: [L, C].
        sign: of s, the cosine.

    Returns:
        fp32 [N].
    """
    cosine = sign * (normalize(words, dim=-1) @ seen.T)  # L N
    shares = (SHARPNESS * cosine).softmax(dim=-1)
    entropy = -(shares * (shares + 1e-12).log()).sum(dim=-1)
    least, order = entropy.sort(stable=True)
    number = max(1, int(SHARE * len(words)))
    return (-least[:number] / TEMPERATURE).softmax(dim=0) @ cosine[order[:number]]


@dataclass(frozen=True)
class EADP(Method):
    """T times the token that adds most to sum_i w_i max_{j kept} S_ij, S = (1 + cos(x_i, x_j)) / 2 of what the decoder
    would see: coverage, weighted by what is covered.

    t_i = alpha g_i + (1 - alpha) l_i: g is -cos(e_i, q), e and q as in `CDPruner`; l is the same with those words of
    the question that point at few tokens (`local`). w = t, min-max scaled over the picture, smoothed by a Gaussian on
    its grid, to the power of beta. Without a text encoder e is x, q the mean of the question's rows of the decoder's
    embedding table, its words these rows, and the sign is positive; published for Qwen2.5-VL is the negative one, and
    positions that lose the grid.

    One budget is for all crops of a picture: each gets its share of the sum of w, and the first so many of its own
    choice stay. The published code loses what floors take: here it goes to the crops that lost most; what unpadding
    cuts away is no candidate. It also counts padding, begin and end as words, 63 of 77 for a short question: here the
    words alone.

    Args:
        alpha: weight of the whole question beside its words.
        beta: exponent of w; None: 1 with CLIP's relevance, 2 without, as published.
        relevance: "clip" or "embeddings"; "auto" is CLIP where a folder of a whole one is known.
        clip: that folder; None takes the model's tower's.
        flipped: whether what is least like the question weighs most; None: by CLIP only.
    """

    alpha: Annotated[float, (0, 1)] = 0.5
    beta: Annotated[float, (0, None)] | None = None
    relevance: Literal["auto", "clip", "embeddings"] = "auto"
    clip: str | None = None
    flipped: bool | None = None

    @property
    def needs(self) -> Needs:
        return Needs(group="image")

    def prepare(self, model: nn.Module, processor: Any):
        read = reader("eadp", model, processor, self.relevance, self.clip)
        return lambda texts: read([without_instructions(text) for text in texts])

    @torch.no_grad()
    def encode(self, views: Views, num: int) -> Kept:
        tokens, layout = views.project(views.features), views.layout
        questions = questions_of("eadp", views.text)
        weights = self.weights(questions, seen_by(questions, views.features, tokens), views.grid, layout is not None)
        similarity = (cosines(tokens).clamp(-1, 1) + 1) / 2
        nearness = similarity * weights.unsqueeze(1)
        if layout is None:
            slots = cover(nearness, num).sort(dim=1).values
            return Kept(slots, tokens.take_along_dim(slots.unsqueeze(-1), dim=1))
        num_views, num_tokens = weights.shape
        last = torch.zeros_like(weights).masked_fill(~layout.seen, -1e9)
        most = min(num, num_tokens)
        picks = cover(nearness, most, lambda gains: gains + last)
        turn = torch.arange(num_tokens, 0, -1.0, device=weights.device)[:most].expand(num_views, -1)
        scores = torch.zeros_like(weights).scatter(1, picks, turn)
        return share_out(scores, layout.seen, *quotas(weights, num), num)

    def weights(self, questions: list[Question], seen: Tensor, grid: tuple[int, int], together: bool) -> Tensor:
        """w, fp32 [V, N].

        Args:
            seen: [V, N, C], what questions are compared with.
            together: whether all views are scaled as one picture.
        """
        by_clip = questions[0].see is not None
        sign = -1 if (by_clip if self.flipped is None else self.flipped) else 1
        beta = (1.0 if by_clip else 2.0) if self.beta is None else self.beta
        told = []
        for question, view in zip(questions, normalize(seen.float(), dim=-1), strict=True):
            whole = sign * (view @ normalize(question.pooled.to(view), dim=-1).mean(dim=0))
            parts = torch.stack([local(view, words.to(view), sign) for words in question.words]).mean(dim=0)
            told.append(self.alpha * whole + (1 - self.alpha) * parts)
        told = torch.stack(told)
        least, most = (told.flatten() if together else told).aminmax(dim=-1, keepdim=True)
        scaled = torch.where(most - least > OFFSET, (told - least + OFFSET) / (most - least + OFFSET), 1)
        return smoothed(scaled, grid) ** beta
