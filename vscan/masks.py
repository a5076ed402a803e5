"""Which columns of a prompt hold a token: read from what a model is given, and closed up where some are dropped."""

import torch
from torch import Tensor


def padding_mask(attention_mask: Tensor | dict | None, length: int) -> Tensor | None:
    """The columns of a prompt that hold tokens, as bool [B, L], from whatever mask a model is given.

    Args:
        attention_mask: [B, L]; or [B, 1, L, K] as generate builds it for a static cache, where the last query sees
            every column that is no padding; or a dict that holds it under the kind of attention; or None.
        length: L.
    """
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["full_attention"]
    if attention_mask is None or attention_mask.ndim == 2:
        return None if attention_mask is None else attention_mask != 0
    last = attention_mask[:, 0, -1, :length]
    return last if last.dtype == torch.bool else last == 0


def all_true(mask: Tensor) -> bool:
    """Whether a mask masks nothing: a host read, as transformers does it for masks that it is given."""
    return bool(mask.all())


def compact(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Columns that stay, in order, as [B, length]: no sort, no device sync.

    Rows that keep fewer than `length` columns are filled up with their first columns that were not kept.

    Args:
        keep: bool [B, L].
        length: the largest number of kept columns of a row, or more.

    Returns:
        Long columns [B, length], and bool [B, length]: kept (not a filler).
    """
    batch, width = keep.shape
    dropped = ~keep
    missing = length - keep.sum(dim=1, keepdim=True)
    include = keep | (dropped & (dropped.cumsum(dim=1) <= missing))
    target = torch.where(include, include.cumsum(dim=1) - 1, length)
    source = torch.arange(width, device=keep.device).expand(batch, -1)
    columns = source.new_zeros(batch, length + 1).scatter_(1, target, source)
    valid = keep.new_zeros(batch, length + 1).scatter_(1, target, keep)
    return columns[:, :length], valid[:, :length]
