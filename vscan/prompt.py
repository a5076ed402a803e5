"""What is known about one batch of prompts: where its visual tokens are, and how short each run of layers sees it.

A *view* is an image, a crop or a frame; a picture is one or several. A *stage* is a place where visual tokens are
dropped: after the vision encoder, or before a decoder layer. A *segment* is the run of layers behind a stage. What was
dropped after the encoder is a mask: `EncodedImages.kept` beside the features, then `VisualPrompt.kept`, which travels
from the shell to the decoder as a keyword; `Segment.drop_empty` applies it before layer 0. What decoding has to know
hangs on the KV cache (`cache.PromptState`). Nothing is kept on a module: two prompts can be under way on one model.
"""

import weakref
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from transformers import Cache

from .kept import Kept, Planned
from .masks import arrange, compact, placed


@dataclass
class VisualPrompt:
    """Where a batch of prompts holds its visual tokens.

    Args:
        visual: bool [B, L], the placeholder columns.
        num_views: views (images, crops, frames) per row.
        num_visual: placeholders per row.
        num_kept: placeholders per row that hold a token after the vision encoder. None where that depends on the
            picture: it is read when the decoder drops the others.
        num_valid: columns per row that are no padding.
        kept: bool [B, L], the placeholders that hold a token after the vision encoder; None where all do.
        apart: bool [B, L], those that hold the [CLS] token of a frame; None where none does.
        num_apart: how many these are per row.
        entered: set by the decoder loop; the shell fails loudly where it stays unset.
        cache: set by the decoder loop, the cache that it filled; the shell fails loudly where it hands out another.
            Weak, because statistics keep the prompt, and would keep all keys and values alive.
        is_bound: `num_kept` and `num_valid` are the most that these prompts may have; what they have is masked.
        is_captured: the cache is one that recorded graphs fill (`vscan.capture`), not the one that came in.
    """

    visual: Tensor
    num_views: list[int]
    num_visual: list[int]
    num_kept: list[int] | None
    num_valid: list[int]
    kept: Tensor | None = None
    apart: Tensor | None = None
    num_apart: list[int] | None = None
    entered: bool = False
    cache: weakref.ref[Cache] | None = None
    is_bound: bool = False
    is_captured: bool = False

    def repeat(self, times: int) -> "VisualPrompt":
        """The same prompts, each `times` times in a row: what generate does for beams and returned sequences."""
        if times == 1:
            return self
        lists = (self.num_views, self.num_visual, self.num_kept, self.num_valid)
        repeated = (numbers and [number for number in numbers for _ in range(times)] for numbers in lists)
        kept, apart = (
            mask if mask is None else mask.repeat_interleave(times, dim=0) for mask in (self.kept, self.apart)
        )
        num_apart = self.num_apart and [number for number in self.num_apart for _ in range(times)]
        return VisualPrompt(self.visual.repeat_interleave(times, dim=0), *repeated, kept, apart, num_apart)

    def joined(self, other: "VisualPrompt") -> "VisualPrompt":
        """The same prompts with the visual tokens of another modality as well: images and videos."""

        def sums(of_self, of_other):
            return [sum(pair) for pair in zip(of_self, of_other, strict=True)]

        num_kept = None
        if self.num_kept is not None and other.num_kept is not None:
            num_kept = sums(self.num_kept, other.num_kept)
        of_both = [prompt.visual if prompt.kept is None else prompt.kept for prompt in (self, other)]
        kept = None if self.kept is None and other.kept is None else of_both[0] | of_both[1]
        apart = [prompt for prompt in (self, other) if prompt.apart is not None]
        return VisualPrompt(
            self.visual | other.visual,
            sums(self.num_views, other.num_views),
            sums(self.num_visual, other.num_visual),
            num_kept,
            self.num_valid,
            kept,
            reduce(torch.bitwise_or, [prompt.apart for prompt in apart]) if apart else None,
            reduce(sums, [prompt.num_apart for prompt in apart]) if apart else None,
        )

    @classmethod
    def read(
        cls,
        visual: Tensor,
        attention_mask: Tensor | None,
        sizes: list[int],
        views: list[int],
        num_kept: list[int] | None,
        kept: Tensor | None = None,
        apart: Tensor | None = None,
        num_apart: list[int] | None = None,
    ) -> "VisualPrompt":
        """Count what each row holds. One row without a mask needs no data; else it is one host read per prompt.

        Args:
            visual: bool [B, L].
            attention_mask: bool [B, L], or None where nothing is padding.
            sizes, views: placeholders and views of every image, in the order in which the rows hold them.
            num_kept: how many tokens of every image are left by the encoder, or None where that depends on the picture.
            kept: bool [sum(sizes)], which these are; None where all are.
            apart: bool [sum(sizes)], which of them belong to no grid; None where none does.
            num_apart: how many of every image.

        Raises:
            ValueError: if the rows' placeholders are not those of these images.
        """
        batch, length = visual.shape
        if batch == 1 and attention_mask is None:
            placeholders, valid = [sum(sizes)], [length]
        else:
            mask = torch.ones_like(visual) if attention_mask is None else attention_mask.to(visual.device)
            placeholders, valid = torch.stack((visual.sum(1), mask.sum(1))).tolist()
        num_views, of_rows, apart_of_rows = [], [], []
        extra = num_apart or [0] * len(sizes)
        left = list(zip(sizes, views, sizes if num_kept is None else num_kept, extra, strict=True))
        for number in placeholders:
            for of_row in (num_views, of_rows, apart_of_rows):
                of_row.append(0)
            while number > 0 and left:
                size, *of_image = left.pop(0)
                number -= size
                for of_row, more in zip((num_views, of_rows, apart_of_rows), of_image, strict=True):
                    of_row[-1] += more
            if number:
                raise ValueError(f"expected the placeholders of images of {sizes} tokens, got {placeholders} per row")
        if left:
            raise ValueError(f"expected the placeholders of images of {sizes} tokens, got {placeholders} per row")
        kept, apart = (None if mask is None else placed(mask, visual) for mask in (kept, apart))
        num_kept, num_apart = (None if num_kept is None else of_rows), (None if apart is None else apart_of_rows)
        return cls(visual, num_views, placeholders, num_kept, valid, kept, apart, num_apart)


@dataclass(frozen=True)
class Segment:
    """A run of decoder layers that see the same, possibly shortened, prompt of S columns.

    Args:
        start: its first layer.
        prompt: the whole prompt.
        columns: long [B, S], the column of the full prompt that each of its columns came from.
        valid: bool [B, S], columns that hold a token; None where all do.
        visual: bool [B, S], columns that hold a visual token.
        positions: long [B or 1, S], the position of each column; [3, B or 1, S] for M-RoPE (time, height, width).
        removed: long [B, 1], what to subtract from the position, in the full prompt, of a token that follows it.
        num_visual, num_valid: visual tokens and columns that hold a token, per row.
    """

    start: int
    prompt: VisualPrompt
    columns: Tensor
    valid: Tensor | None
    visual: Tensor
    positions: Tensor
    removed: Tensor
    num_visual: list[int]
    num_valid: list[int]

    @classmethod
    def whole(
        cls, prompt: VisualPrompt, hidden: Tensor, valid: Tensor | None, position_ids: Tensor | None
    ) -> "Segment":
        """The full prompt as one segment, every placeholder counted as a token.

        Args:
            hidden: [B, L, D].
            valid: bool [B, L] or None.
            position_ids: long [B or 1, L] or [3, B or 1, L], or None for 0, 1, 2, ...
        """
        batch, length = hidden.shape[:2]
        columns = torch.arange(length, device=hidden.device).expand(batch, -1)
        visual = prompt.visual.to(hidden.device)
        fills = min(prompt.num_valid) == length and not prompt.is_bound
        return cls(
            start=0,
            prompt=prompt,
            columns=columns,
            valid=None if valid is None or fills else valid.to(hidden.device),
            visual=visual,
            positions=columns if position_ids is None else position_ids.to(hidden.device),
            removed=columns.new_zeros(batch, 1),
            num_visual=prompt.num_visual,
            num_valid=prompt.num_valid,
        )

    @property
    def length(self) -> int:
        return self.columns.shape[1]

    @property
    def apart(self) -> Tensor | None:
        """Columns that hold the [CLS] token of a frame, bool [B, S]; None where none does."""
        apart = self.prompt.apart
        return None if apart is None else apart.to(self.columns.device).gather(1, self.columns) & self.visual

    def visual_indices(self, row: int) -> list[int]:
        """Which of a row's visual tokens are here, as indices into those of the full prompt. Reads the device."""
        rank = self.prompt.visual[row].cumsum(0) - 1
        columns = self.columns[row][self.visual[row]]
        return rank[columns.to(rank.device)].tolist()

    def to(self, device: torch.device) -> "Segment":
        """The same segment, with its tensors on `device`."""
        if self.columns.device == device:
            return self
        moved = {name: getattr(self, name) for name in ("columns", "valid", "visual", "positions", "removed")}
        return replace(self, **{name: None if t is None else t.to(device) for name, t in moved.items()})

    def text(self, num_columns: int) -> Tensor:
        """Columns of the prompt that hold a token of text, bool [B, S]; later ones are an answer under way."""
        text = ~self.visual & (self.columns < num_columns)
        return text if self.valid is None else text & self.valid

    def query(self, num_columns: int) -> tuple[Tensor, Tensor | None]:
        """The last token of the prompt in every row, and the columns that it may see.

        Args:
            num_columns: columns of the full prompt; later ones are an answer under way.

        Returns:
            Long [B], and bool [B, S] or None where it sees all.
        """
        if self.valid is None and num_columns >= self.prompt.visual.shape[1]:
            return self.columns.new_full((self.columns.shape[0],), self.length - 1), None
        index = torch.arange(self.length, device=self.columns.device)
        asks = self.columns < num_columns
        if self.valid is not None:
            asks = asks & self.valid
        query = torch.where(asks, index, 0).amax(dim=1)
        return query, asks & (index <= query.unsqueeze(1))

    def shorten(
        self, hidden: Tensor, kept: Kept, planned: Planned, compact_positions: bool, spared: Tensor | None = None
    ) -> tuple[Tensor, "Segment"]:
        """Drop the visual tokens that are not kept; text stays, order stays.

        Args:
            hidden: [B, S, D].
            kept: slots in [0, S); ascending, unless there are values.
            planned: how many are kept, and the layer that begins.
            compact_positions: close the gaps in the positions, which for M-RoPE means to number the tokens as text;
                else every token stays at its own.
            spared: bool [B, S], visual tokens that stay as well; None for none.

        Returns:
            [B, S', D] and the new segment; S' is the longest item, shorter ones are filled up and masked.
        """
        slots = kept.slots if kept.valid is None else torch.where(kept.valid, kept.slots, hidden.shape[1])
        visual = torch.zeros(*self.visual.shape[:1], hidden.shape[1] + 1, dtype=torch.bool, device=hidden.device)
        visual = visual.scatter_(1, slots, True)[:, :-1]
        text = ~self.visual if self.valid is None else self.valid & ~self.visual
        if spared is not None:  # where they stand, as text
            visual, text = visual | spared, text | spared
        if kept.values is None:
            columns, valid = compact(text | visual, planned.length)
        else:
            columns, valid, tokens = arrange(text, slots, planned.length)
        items = torch.arange(hidden.shape[0], device=hidden.device).unsqueeze(1)
        hidden = hidden[items, columns]
        if kept.values is not None:
            given = kept.values.to(hidden.dtype)[items, tokens.clamp(min=0)]
            hidden = torch.where((tokens >= 0).unsqueeze(-1), given, hidden)
        if self.valid is None and min(planned.num_valid) == planned.length:
            valid = None
        else:  # fillers are masked, but what they hold may not be finite, and NaN times zero is NaN
            hidden = hidden.masked_fill(~valid.unsqueeze(-1), 0)
        positions, removed = self.positions_of(columns, valid, compact_positions)
        return hidden, replace(
            self,
            start=planned.start,
            columns=self.columns.gather(1, columns),
            valid=valid,
            visual=visual.gather(1, columns),
            positions=positions,
            removed=removed,
            num_visual=planned.num_visual,
            num_valid=planned.num_valid,
        )

    def positions_of(self, columns: Tensor, valid: Tensor | None, compact_positions: bool) -> tuple[Tensor, Tensor]:
        """The positions of some columns, long [B, S'] or [3, B, S'], and what is to be subtracted from then on."""
        axes = self.positions.shape[:-2]  # none, or 3 for M-RoPE
        positions = self.positions.expand(*axes, *self.visual.shape)
        if not compact_positions:
            return positions.gather(-1, columns.expand(*axes, -1, -1)), self.removed
        along = positions[0] if axes else positions
        first = along[:, :1] if self.valid is None else along.gather(1, self.valid.int().argmax(dim=1, keepdim=True))
        if valid is None:
            order, num_left = torch.arange(columns.shape[1], device=columns.device).expand_as(columns), columns.shape[1]
        else:
            order, num_left = (valid.cumsum(dim=1) - 1).clamp(min=0), valid.sum(dim=1, keepdim=True)
        # What follows comes after the largest coordinate of a token, and is to come after the last one.
        behind_first = positions - first
        if self.valid is not None:
            behind_first = behind_first.masked_fill(~self.valid, -1)
        largest = behind_first.amax(dim=(0, 2) if axes else 1)
        removed = self.removed + largest.unsqueeze(1) + 1 - num_left
        return (order + first).expand(*axes, -1, -1), removed

    def drop_empty(self, hidden: Tensor, planned: Planned, compact_positions: bool) -> tuple[Tensor, "Segment"]:
        """Drop the placeholders that the vision stage left without a token: the decoder's layer 0 never sees them."""
        if planned.num_visual == self.num_visual:
            return hidden, self
        slots, valid = compact(self.prompt.kept.to(self.visual.device), max(planned.num_visual))
        return self.shorten(hidden, Kept(slots, valid=valid), planned, compact_positions)
