"""What a method is given, and what it may say: the only things an author of a new method has to know.

A method reduces in one or both of two places: `encode`, after the vision encoder, and `prune`, before a decoder layer.
Both return a `Kept`. What is kept is written into prompts, masks, positions and caches by the core.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Budget
from ..fields import fields_of
from ..kept import Kept
from ..select.attention import device_of, prompt_rows, queries_and_keys
from ..select.remembered import numbers_on
from ..select.scan import top


class Needs(NamedTuple):
    """What a method reads, so that nothing else is computed.

    Args:
        rows: vision layers whose row (`Views.rows`) is wanted; negative ones count from the end, as in Python.
        keys: vision layers whose keys and [CLS] query are wanted.
        cls: whether the vision encoder must have a [CLS] token.
        group: what one budget is for, "view" or "image": all crops of a picture, all frames of a clip. The latter then
            come one below the other as one view, without keys and without [CLS].
        back: decoder inputs kept behind the pruning layer, 0 or 1: with 1 the rows of the layer before can be read.
    """

    rows: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    cls: bool = False
    group: str = "view"
    back: int = 0


class Layout(NamedTuple):
    """How the crops of a picture lie: the whole picture first, then tiles, row by row.

    Args:
        tiles: rows and columns of tiles.
        seen: bool [V, N], tokens that the model's packing leaves: unpadding cuts the others away.
    """

    tiles: tuple[int, int]
    seen: Tensor


@dataclass(frozen=True)
class Views:
    """The vision encoder's view of some images: one view is one image, crop or frame.

    Args:
        pixels: [V, ...], what the encoder saw.
        features: [V, N, C], the encoder's output at the layer that the model reads, without [CLS], before the
            projector.
        rows: {layer as the method wrote it: [V, N] fp32}, attention of [CLS] to the patches, mean over heads; in a
            tower without [CLS], the attention that each token receives from all of its view.
        grid: (height, width) in tokens, N = height * width.
        project: the model's projector, [V, n, C] -> [V, n, D]; where that is a part of the encoder, the identity.
        cls: [V, C], the [CLS] token of the layer that the model reads; None without one.
        keys: {layer: [V, 1 + N, C]}, keys of [CLS] and the patches, heads side by side, as the layer projects them.
        queries: {layer: [V, C]}, the query of [CLS] in the same layers.
        num_heads: of those.
        layout: where the views are the crops of one picture and `Needs.group` is "image"; None for a single view.
        text: one a view, what `Method.prepare`'s function made of its prompt's text; None where it gave none.
        state: what `Method.block` left in the blocks of the tower.
    """

    pixels: Tensor
    features: Tensor
    rows: dict[int, Tensor]
    grid: tuple[int, int]
    project: Callable[[Tensor], Tensor]
    cls: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    num_heads: int = 1
    layout: Layout | None = None
    text: list | None = None
    state: dict = field(default_factory=dict)


class Entry(NamedTuple):
    """What entered the decoder's layer 0.

    Args:
        hidden: [B, S, D].
        visual: bool [B, S], columns that hold a visual token.
        text: bool [B, S], columns of the prompt that hold a token of text.
        num_text: the most of the latter that an item has.
    """

    hidden: Tensor
    visual: Tensor
    text: Tensor
    num_text: int


@dataclass(frozen=True)
class Stage:
    """A prompt before a decoder layer that prunes. What costs something is computed where it is called.

    Args:
        layer: the layer about to run.
        hidden: [B, S, D], its input.
        visual: bool [B, S], columns that hold a visual token which competes for the budget.
        text: bool [B, S], columns of the prompt that hold a token of text.
        num: visual tokens to keep, one int an item.
        arriving: visual tokens that are there, one int an item; where they are as many as `num`, all stay.
        entry: what entered layer 0.
        memory: a dict of the prompt's own, shared by its stages.
        positions: long [B or 1, S], or [3, B or 1, S] for M-RoPE.
        rotary: (cos, sin) of these positions, [B or 1, S, d] each; None where the model is ranked without.
        final_norm: the norm behind the decoder's last layer.
        last: long [B], the column of the prompt's last token, which asks where no other is named.
        allowed: bool [B, S], what holds a token and no later one than `last`; None where all columns do.
        layers: the pruning layer and, with `Needs.back`, the one before: [layer - 1, layer].
        inputs: their inputs, [B, S, D] each.
        queries_keys: how layers of this model make queries and keys.
    """

    layer: int
    hidden: Tensor
    visual: Tensor
    text: Tensor
    num: list[int]
    arriving: list[int]
    entry: Entry
    memory: dict
    positions: Tensor
    rotary: tuple[Tensor, Tensor] | None
    final_norm: nn.Module
    last: Tensor
    allowed: Tensor | None
    layers: list[nn.Module]
    inputs: list[Tensor]
    queries_keys: Callable = queries_and_keys

    def rows(self, queries: Tensor | None = None, back: int = 0) -> Tensor:
        """softmax(q k^T / sqrt(d)) of some columns over the whole causal row, text included (VScan, section 4).

        Args:
            queries: long [B, Q], columns that ask; None asks the prompt's last token.
            back: 1 takes the layer before, on its own input: the attention with which that layer ran, where
                `Method.with_rotary` is True; `Needs.back` must say so.

        Returns:
            [B, H, Q, S] fp32.
        """
        layer, hidden = self._layer_and_input(back)
        allowed = None if self.allowed is None else self.allowed.unsqueeze(1)
        if queries is None:
            queries = self.last.unsqueeze(1)
        else:
            causal = torch.arange(hidden.shape[1], device=queries.device) <= queries.unsqueeze(-1)
            allowed = causal if allowed is None else causal & allowed
        allowed = None if allowed is None else allowed.to(hidden.device)
        rows = prompt_rows(layer, hidden, queries.to(hidden.device), self.rotary, allowed, self.queries_keys)
        return rows.to(self.hidden.device)

    def keys(self, back: int = 0) -> Tensor:
        """The keys of a layer, rotated: [B, Hk, S, d]; `back` as in `rows`."""
        layer, hidden = self._layer_and_input(back)
        none = torch.empty(len(hidden), 0, dtype=torch.long, device=hidden.device)
        return self.queries_keys(layer, hidden, none, self.rotary)[1].to(self.hidden.device)

    def _layer_and_input(self, back: int) -> tuple[nn.Module, Tensor]:
        layer = self.layers[-1 - back]
        return layer, self.inputs[-1 - back].to(device_of(layer))  # it may lie on another device than the next one


class Tower(NamedTuple):
    """A vision encoder, and what a reduction keeps of its tokens.

    Args:
        num_layers: its blocks.
        depth: how many of them lead to the layer that the model reads.
        num_tokens, num: of a view, and how many of them are kept; None where views vary in size.
    """

    num_layers: int
    depth: int
    num_tokens: int | None
    num: int | None


class Schedule(NamedTuple):
    """Budgets of both stages, as `vscan.reduce` takes them."""

    visual_tokens: Budget | None = None
    layers: Mapping[int, Budget] = {}


@dataclass(frozen=True)
class Method:
    """A way to reduce visual tokens: a frozen dataclass whose fields are its hyper-parameters.

    The fields become keywords of `vscan.reduce` and flags of the command line; their annotations, such as `int | None`
    or `Annotated[float, (0, 1)]`, are checked (`vscan.fields`). Selection must run on the tensors' own device without
    reading them back, and must depend on one group alone, so that a batch equals its items run alone.
    """

    # The one resolution (height, width) to which the method's authors fixed any-resolution checkpoints in the original
    # format, without unpadding and newlines; None leaves the checkpoint's way.
    anyres_resolution: ClassVar[tuple[int, int] | None] = None
    # Whether tokens are numbered anew without gaps ("compact") or stay at their positions ("original"); M-RoPE models
    # keep theirs whatever a method says here.
    positions: ClassVar[str] = "compact"
    # Whether its rows in the decoder apply the rotary embedding; None: as VScan ranks on that model.
    with_rotary: ClassVar[bool | None] = None
    # Whether its stages in the decoder rank the [CLS] tokens of frames as any other; else these stay beside its budget.
    ranks_cls: ClassVar[bool] = False
    # Published schedules whose counting differs from ours, by the name that `preset` gives.
    presets: ClassVar[dict[str, Schedule]] = {}

    def __post_init__(self):
        """Raise ValueError for a hyper-parameter of another kind or range than its annotation; numpy's become plain."""
        for each in fields_of(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))

    @property
    def needs(self) -> Needs:
        """What it reads."""
        return Needs()

    def check(self, tower: Tower) -> None:
        """Raise ValueError if the hyper-parameters or the budget do not fit a vision encoder."""
        num_layers = tower.num_layers
        for layer in (*self.needs.rows, *self.needs.keys):
            if not -num_layers <= layer < num_layers:
                raise ValueError(f"{type(self).__name__}: expected one of {num_layers} vision layers, got {layer}")

    def prepare(self, model: nn.Module, processor: Any) -> Callable[[list[str]], list] | None:
        """What a method that reads text makes of texts, one a prompt: the function that fills `Views.text`. Called
        once, before a reduction is put in force; ValueError where something is missing for it."""

    def schedule(self, average: Budget, num_layers: int, num_tokens: int | None) -> Schedule:
        """Budgets that leave so many visual tokens of a view on average over the decoder's layers. A method that
        reduces in the decoder has to say how; this is the way of one that reduces after the vision encoder.

        Args:
            average: a count, or a share of the view's tokens.
            num_layers: of the decoder.
            num_tokens: of a view; None where views vary in size, and only a share is known.

        Raises:
            Unreachable: where there are none.
        """
        return Schedule(average)

    def block(self, layer: nn.Module, hidden: Tensor, state: dict, index: int, depth: int, num: int) -> Tensor:
        """Run block `index` of a CLIP tower, one of `depth` that lead to the layer that the model reads.

        Args:
            layer: the block; `layer(hidden, None)` runs it.
            hidden: [V, 1 + n, C], [CLS] first; what is returned may have fewer tokens.
            state: a dict of this pass, for the method's own use.
            num: tokens to be left of every view.
        """
        return layer(hidden, None)

    def encode(self, views: Views, num: int) -> Kept:
        """Reduce every view, or all views of a picture (`Needs.group`), to `num` tokens, fewer than there are.

        Returns:
            `Kept` with G = V and slots in [0, N), or G = 1 and slots in [0, V * N), view after view.
        """
        raise NotImplementedError(f"{type(self).__name__} reduces nothing after the vision encoder")

    def leaves(self, num: int, arriving: int) -> int:
        """How many of `arriving` visual tokens `prune` leaves where `num` are asked for; pure, so that lengths are
        known before the prompt runs."""
        return num

    def prune(self, stage: Stage) -> Kept:
        """Keep `stage.num` visual tokens of every item.

        Returns:
            `Kept` with G = B: of every item `leaves(num, arriving)` tokens, or all where these two are equal.
        """
        scores = self.scores(stage.rows()[:, :, 0]).masked_fill(~stage.visual, -torch.inf)
        return best(scores, stage.num)

    def scores(self, rows: Tensor) -> Tensor:
        """The short way to `prune`: from the last prompt token's attention, [B, H, S] fp32 over the whole causal row,
        to a score of every token, [B, S] fp32; the largest visual ones stay. Here the mean over heads (VScan, section
        4)."""
        return rows.mean(dim=1)


def best(scores: Tensor, num: list[int]) -> Kept:
    """The `num` largest scores of every item in ascending order of columns, the earlier ones on ties.

    Args:
        scores: [B, S], -inf where nothing may be kept.
        num: one int an item.
    """
    most = max(num)
    slots = top(scores, most)
    if min(num) == most:
        return Kept(slots.sort(dim=1).values)
    valid = torch.arange(most, device=slots.device) < numbers_on(tuple(num), slots.device).unsqueeze(1)
    slots, order = slots.masked_fill(~valid, scores.shape[1] - 1).sort(dim=1)  # what is no token goes last
    return Kept(slots, valid=valid.gather(1, order))
