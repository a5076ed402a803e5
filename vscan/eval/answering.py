"""What every family does around `generate`: rows become a batch, and what a reduction left becomes their stats."""

from typing import Any

import torch
from torch import Tensor

from ..api import Reduction


def check_context(num_tokens: int, config: Any) -> None:
    """Check that a prompt fits into a model's context, dense: a reduction sees all of it first.

    Args:
        num_tokens: of text and pictures.
        config: the model's.

    Raises:
        ValueError: for more tokens than the decoder has positions.
    """
    most = config.get_text_config().max_position_embeddings
    if num_tokens > most:
        raise ValueError(f"expected a prompt of at most {most} tokens, the context of this model, got {num_tokens}")


def left_padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put prompts of different lengths into one batch.

    They are filled up with their own first id, which the mask hides: a repetition penalty counts every id of a row,
    and would punish a filler that the prompt alone does not have.

    Returns:
        ids int64 [B, N], mask int64 [B, N] with 0 for what was filled up.
    """
    length = max(map(len, rows))
    ids = torch.tensor([row[:1] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def read_stages(reduction: Reduction | None, lengths: list[int]) -> list[dict]:
    """What became of the visual tokens of a batch that has just run.

    Args:
        reduction: in force on the model, or None.
        lengths: visual tokens of each row before any reduction.

    Returns:
        For each row its visual tokens before reduction, and [layer, tokens] for every stage.
    """
    stages = [[[0, number]] for number in lengths]
    if reduction is not None and any(lengths):
        rows = reduction.stats().rows
        repeats = len(rows) // len(lengths)  # beams
        stages = [row.stages if row.visual_tokens else [[0, 0]] for row in rows[::repeats]]
    return [{"visual_tokens": number, "stages": stage} for number, stage in zip(lengths, stages, strict=True)]
