"""What methods that read text make of a question: CLIP's embedding of it, or rows of the decoder's own table."""

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from ...checks.selftest_tower import clip_towers_of
from ...compat import clip_last_norm, clip_words
from ...select.attention import device_of

# What LLaVA's benchmarks append to a question.
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


class Question(NamedTuple):
    """A question as tokens of a picture can be compared with it, in fp32.

    Args:
        pooled: [M, C], one vector for each segment of the text.
        words: M times [L, C], a vector for each token of a segment, at least one.
        see: from the tower's features [V, N, C'] to tokens in the space of these, where that is CLIP's; None where they
            are compared as the decoder sees them.
    """

    pooled: Tensor
    words: list[Tensor]
    see: Callable[[Tensor], Tensor] | None = None


def without_instructions(text: str) -> str:
    """The question without what asks for a short answer."""
    for sentence in INSTRUCTIONS:
        text = text.replace(sentence, "")
    return text.strip()


def reader(
    name: str, model: nn.Module, processor: Any, relevance: str, clip: str | None
) -> Callable[[list[str]], list[Question]]:
    """What a method's `prepare` returns.

    Args:
        name: of the method, for messages.
        relevance: "clip", "embeddings", or "auto": CLIP's where `clip` or the model's tower names a folder of a whole
            one, else the rows of the decoder's table.
        clip: a folder with a CLIP of towers, projections and tokenizer; None takes the one of the model's tower.

    Raises:
        ValueError: where there is no such CLIP, or no tokenizer for the rows.
    """
    towers = clip_towers_of(model)
    tower = towers[0] if len(towers) == 1 else None  # Video-LLaVA's two are of no CLIP
    folder = clip or getattr(getattr(tower, "config", None), "_name_or_path", None) or ""
    if relevance != "embeddings" and tower is not None and is_whole_clip(folder):
        return clip_reader(folder, tower)
    if relevance == "clip" or (clip is not None and relevance == "auto"):
        raise ValueError(
            f"method {name!r}: expected a model with a CLIP tower, and in clip= the folder of the whole CLIP with its "
            f"text encoder and tokenizer, got {folder!r}"
        )
    return embeddings_reader(name, model, processor)


def is_whole_clip(folder: str) -> bool:
    """Whether a folder holds a CLIP with both towers, and a tokenizer."""
    path = Path(folder)
    if not folder or not (path / "config.json").is_file():
        return False
    has_tokenizer = any((path / file).is_file() for file in ("tokenizer.json", "merges.txt"))
    return has_tokenizer and json.loads((path / "config.json").read_text()).get("model_type") == "clip"


@lru_cache(maxsize=1)
def load_clip(folder: str, device: torch.device) -> tuple[nn.Module, Any]:
    """A whole CLIP in fp32 without the blocks of its vision tower, and its tokenizer."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    del clip.vision_model
    return clip.requires_grad_(False).to(device), AutoTokenizer.from_pretrained(folder)


def clip_reader(folder: str, tower: nn.Module) -> Callable[[list[str]], list[Question]]:
    """Texts by CLIP's text encoder. Longer ones than it takes are cut into segments, each between the two marks."""
    clip, tokenizer = load_clip(folder, device_of(tower))
    longest = clip.config.text_config.max_position_embeddings - 2
    norm = copy.deepcopy(clip_last_norm(tower)).float()
    norm.to(device_of(clip))

    @torch.no_grad()
    def see(features: Tensor) -> Tensor:
        seen = clip.visual_projection(norm(features.to(device_of(clip)).float()))
        return seen.to(features.device)

    @torch.no_grad()
    def read(texts: list[str]) -> list[Question]:
        return [question(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in texts]

    def question(ids: list[int]) -> Question:
        segments = []
        for start in range(0, max(1, len(ids)), longest):
            part = [tokenizer.bos_token_id, *ids[start : start + longest], tokenizer.eos_token_id]
            segments.append(clip_words(clip, torch.tensor(part, device=device_of(clip))))
        pooled = torch.stack([words[-1] for words in segments])
        return Question(pooled, [words[1:-1] if len(words) > 2 else words[-1:] for words in segments], see)

    return read


def token_rows(name: str, model: nn.Module, processor: Any) -> Callable[[list[str]], Tensor]:
    """From pieces of text, each tokenized alone, to the rows of their tokens in the decoder's embedding table: [L, D]
    fp32, a row of zeros for no token. ValueError without a tokenizer."""
    if processor is None:
        raise ValueError(
            f"method {name!r} reads the question with the decoder's tokenizer: expected processor=, got None"
        )
    tokenizer, table = getattr(processor, "tokenizer", processor), model.get_input_embeddings()

    @torch.no_grad()
    def rows(pieces: list[str]) -> Tensor:
        ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        if not ids:
            return torch.zeros(1, table.weight.shape[1], device=device_of(table))
        return table(torch.tensor(ids, device=device_of(table))).float()

    return rows


def embeddings_reader(name: str, model: nn.Module, processor: Any) -> Callable[[list[str]], list[Question]]:
    """Texts by the rows of their tokens, pooled by their mean."""
    rows = token_rows(name, model, processor)

    def question(words: Tensor) -> Question:
        return Question(words.mean(dim=0, keepdim=True), [words])

    return lambda texts: [question(rows([text])) for text in texts]


def questions_of(name: str, text: list | None) -> list:
    """`Views.text`; ValueError where there is none."""
    if text is None:
        raise ValueError(f"method {name!r} reads text: expected one beside every view, got none")
    return text


def seen_by(questions: list[Question], features: Tensor, tokens: Tensor) -> Tensor:
    """What questions are compared with: the features in CLIP's space, or tokens as the decoder sees them; fp32."""
    see = questions[0].see
    return tokens.float() if see is None else see(features)
