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


def arrange(text: Tensor, slots: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of text that stay and tokens among them, as [B, length]: no sort, no device sync.

    A token whose slot is below an earlier one's stands right behind its predecessor. Items that hold fewer than
    `length` are filled up with their first columns that hold nothing.

    Args:
        text: bool [B, L].
        slots: long [B, T], the columns that tokens take, in their order; L for none.
        length: columns of the longest item, or more.

    Returns:
        Long columns [B, length]; bool [B, length], which hold something; and long [B, length], which token, -1 for
        none.
    """
    batch, width = text.shape
    valid = slots < width
    taken = torch.zeros(batch, width + 1, dtype=torch.bool, device=text.device).scatter_(1, slots, True)[:, :-1]
    unused = ~(text | taken)
    missing = length - text.sum(dim=1, keepdim=True) - valid.sum(dim=1, keepdim=True)
    include = text | (unused & (unused.cumsum(dim=1) <= missing))
    behind = torch.where(valid, slots, 0).cummax(dim=1).values  # the column that a token stands at or behind
    at_column = torch.zeros_like(text, dtype=torch.long).scatter_add_(1, behind, valid.long())
    place = torch.where(include, include.cumsum(dim=1) - 1 + at_column.cumsum(dim=1), length)
    place_of_token = torch.where(valid, valid.cumsum(dim=1) - 1 + include.cumsum(dim=1).gather(1, behind), length)

    def laid_out(empty: int, of_text: Tensor, of_tokens: Tensor) -> Tensor:
        found = torch.full((batch, length + 1), empty, dtype=torch.long, device=text.device)
        return found.scatter_(1, place, of_text).scatter_(1, place_of_token, of_tokens)[:, :length]

    source = torch.arange(width, device=text.device).expand(batch, -1)
    number = torch.arange(slots.shape[1], device=text.device).expand(batch, -1)
    columns = laid_out(0, source, slots.clamp(max=width - 1))
    holds = laid_out(0, text.long(), valid.long()) > 0
    return columns, holds, laid_out(-1, torch.full_like(source, -1), number)


def placed(kept: Tensor, visual: Tensor) -> Tensor:
    """Which placeholders hold a token, bool [B, L], from which of all images' tokens are left, bool [number of them].

    By index: where these are not the placeholders of `visual`, as the shell will say, nothing is out of range.
    """
    number = (visual.flatten().cumsum(0) - 1).clamp(0, len(kept) - 1)
    return visual & kept.to(visual.device)[number].view_as(visual)
