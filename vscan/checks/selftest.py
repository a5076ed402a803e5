"""Whether the decoder loop still does what the installed transformers does: tried on a small copy of the text model.

Two layers of the text model's own class with random weights, in float32 on the CPU. The prompts are two items of
unequal length, padded at the left. The loop runs them and then one more token; the stock forward runs both at once,
without a cache, so that a cache that is not used, or positions that are not followed, show as well:

1. nothing dropped: the loop gives what the stock forward gives;
2. columns dropped: the loop gives what the stock forward gives for each short prompt alone;
3. the mask of a layer has the length of what the cache holds for that layer;
4. the row by which the decoder ranks is the stock layer's own weights under eager attention.

It runs once a process for a class and the functions that it is made of, in about 40 ms; VSCAN_SELFTEST=0 leaves it out.
`vscan.checks.selftest_tower` does the same for a CLIP tower.
"""

import copy
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType, SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import DynamicCache, cache_utils, masking_utils

from ..cache import Force
from ..classes import mixed
from ..compat import CACHE, LibraryChanged, attention_implementation, build, causal_mask, is_mrope, rotary_of
from ..decoder import Decoder
from ..methods.base import Method
from ..plan import Fitted
from ..prompt import Segment, VisualPrompt
from ..select.attention import prompt_rows
from .guards import generation

NUM_LAYERS, HEADS, HEAD_DIM, LENGTH = 2, 4, 8, 9
PADDING = 2  # columns before the second item
VISUAL = slice(3, 7)  # columns of both items
KEPT = ((3, 6), (5,))  # visual columns of each item that are not dropped
TOLERANCE = 1e-4  # of values of about 1; float32 gives some 1e-6

_passed: set = set()


def check_text_model(text_model: nn.Module, stock: type) -> None:
    """Run the self-test for a text model, unless it has passed before in this process.

    Args:
        text_model: the decoder of a model.
        stock: its class, without what is mixed into it here.

    Raises:
        LibraryChanged: naming the first step that does not fit.
    """
    implementation = attention_implementation(text_model)
    implementation = implementation if implementation in ("sdpa", "eager") else "sdpa"  # what a CPU has
    rope = str(getattr(text_model.config, "rope_parameters", None))
    key = (stock, implementation, rope, *functions(stock, type(text_model.layers[0])))
    once(stock.__name__, key, lambda: _Trial(text_model, stock, implementation).run())


def once(name: str, key: tuple, trial: Callable[[], None]) -> None:
    """Run a trial of a small copy on the CPU, unless one of the same key has passed before in this process.

    Raises:
        LibraryChanged: from the trial, or for whatever else ends it.
    """
    if os.environ.get("VSCAN_SELFTEST") == "0" or key in _passed:
        return
    token = generation.set(None)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _on_cpu(), torch.autocast("cpu", enabled=False):
            trial()
    except LibraryChanged:
        raise
    except Exception as error:
        raise LibraryChanged(f"a small copy of {name} to run", f"{type(error).__name__}: {error}") from error
    finally:
        generation.reset(token)
    _passed.add(key)


def _on_cpu():
    """New tensors on the CPU; a context that says so costs every operation time, and is left out where it can be."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def functions(*classes: type) -> list[FunctionType]:
    """The functions that a result rests on: those of the classes' modules, of masks and of caches. One that is replaced
    while the process runs makes another key."""
    names = dict.fromkeys(base.__module__ for cls in classes for base in cls.__mro__ if base.__module__ != "builtins")
    modules = [sys.modules[name] for name in names if not name.startswith("torch.")]
    found = []
    for module in (*modules, masking_utils, cache_utils):
        for value in vars(module).values():
            if isinstance(value, FunctionType):
                found.append(value)
            elif isinstance(value, type) and value.__module__ == module.__name__:
                found += [member for member in vars(value).values() if isinstance(member, FunctionType)]
    return found


def copy_of(cls: type, config, implementation: str, random: torch.Generator) -> nn.Module:
    """A model with random weights that are large enough for every part to matter, in float32."""
    model = build(cls, config, dtype=torch.float32, attn_implementation=implementation).eval()
    for parameter in model.parameters():
        centre = 0.0 if parameter.ndim > 1 else float(parameter.mean())
        parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=random))
    return model


def _small(config):
    """The config of a small copy: the same kind of layers, few and narrow."""
    small = copy.deepcopy(config)
    grouped = config.num_key_value_heads < config.num_attention_heads
    small.num_hidden_layers, small.hidden_size, small.intermediate_size = NUM_LAYERS, HEADS * HEAD_DIM, 48
    small.num_attention_heads, small.num_key_value_heads = HEADS, HEADS // 2 if grouped else HEADS
    small.vocab_size, small.pad_token_id, small.attention_dropout, small.use_cache = 4, None, 0.0, True
    if getattr(small, "head_dim", None) is not None:
        small.head_dim = HEAD_DIM
    if getattr(small, "layer_types", None):
        small.layer_types = (small.layer_types * NUM_LAYERS)[:NUM_LAYERS]
    rope = getattr(small, "rope_parameters", None) or {}
    lists = {name: value for name, value in rope.items() if name.endswith("_factor") and isinstance(value, list)}
    factors = {name: value[: HEAD_DIM // 2] for name, value in lists.items()}
    sections = {"mrope_section": [1, 1, HEAD_DIM // 2 - 2]} if "mrope_section" in rope else {}
    small.rope_parameters = {**rope, **factors, **sections}
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    return small


class _Trial:
    """The copy, its prompts, and the four comparisons. The last column is the token of the decoded step."""

    def __init__(self, text_model: nn.Module, stock: type, implementation: str):
        random = torch.Generator().manual_seed(0)
        self.model = copy_of(stock, _small(text_model.config), implementation, random)
        self.ours = copy.copy(self.model)
        self.ours.__class__ = mixed(stock, Decoder)
        self.embeds = torch.randn((2, LENGTH + 1, HEADS * HEAD_DIM), generator=random, dtype=torch.float32)
        self.mask = torch.ones(2, LENGTH + 1, dtype=torch.long)
        self.mask[1, :PADDING] = 0
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        if is_mrope(self.model):  # a picture of 2 x 2 tokens: time stands still over it, and text goes on behind it
            first = self.positions[:, VISUAL][:, :1]
            axes = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
            self.positions = self.positions.repeat(3, 1, 1)
            self.positions[:, :, VISUAL] = first + axes.unsqueeze(1)
            self.positions[:, :, VISUAL.stop :] -= 2
        self.visual = torch.zeros(2, LENGTH, dtype=torch.bool)
        self.visual[:, VISUAL] = True
        self.dropped = self.visual.clone()
        for item, columns in enumerate(KEPT):
            self.dropped[item, list(columns)] = False

    def run(self) -> None:
        self.nothing_dropped()
        self.columns_dropped()
        self.mask_of_a_layer()
        self.ranking_row()

    def nothing_dropped(self) -> None:
        stock = self.stock(self.embeds, self.mask, self.positions)
        prompt, step, _ = self.reduced(None)
        keep = self.mask[:, :LENGTH].bool()
        same("a prompt", stock[:, :LENGTH][keep], prompt[keep])
        same("a decoded token", stock[:, LENGTH:], step)

    def columns_dropped(self) -> None:
        prompt, step, segment = self.reduced(self.dropped)
        stay = self.mask.bool()
        stay[:, :LENGTH] &= ~self.dropped
        for item in range(2):
            embeds = self.embeds[item : item + 1, stay[item]]
            short = self.stock(embeds, None, torch.arange(embeds.shape[1]).unsqueeze(0))[0]
            valid = slice(None) if segment.valid is None else segment.valid[item]
            same("a prompt with columns dropped", short[:-1], prompt[item, valid])
            same("a decoded token after columns were dropped", short[-1:], step[item])

    def mask_of_a_layer(self) -> None:
        cache, num_new = DynamicCache(), 2
        for layer, length in enumerate((5, 3)):
            states = torch.zeros(2, HEADS, length, HEAD_DIM, dtype=torch.float32)
            cache.update(states, states, layer)
            valid = torch.ones(2, length + num_new, dtype=torch.bool)
            valid[1, :PADDING] = False
            mask = causal_mask(self.model.config, self.embeds[:, :num_new], valid, cache, layer, may_skip=False)
            expected = torch.ones(num_new, length + num_new, dtype=torch.bool).tril(length) & valid[:, None, None]
            got = mask if mask is None or mask.dtype == torch.bool else mask == 0
            if got is None or got.shape[-2:] != expected.shape[-2:] or not got.eq(expected).all():
                shape = None if mask is None else tuple(mask.shape)
                raise LibraryChanged(
                    f"a mask {tuple(expected.shape)} of what layer {layer} may see", f"another, {shape}"
                )

    def ranking_row(self) -> None:
        self.model.set_attn_implementation("eager")
        with_rotary = not is_mrope(self.model)  # where it is left out, positions of 0 make it the identity
        positions = self.positions if with_rotary else torch.zeros_like(self.positions)
        output = self.model(
            inputs_embeds=self.embeds,
            attention_mask=self.mask,
            position_ids=positions,
            output_attentions=True,
            output_hidden_states=True,
        )
        hidden, last = output.hidden_states[1], torch.full((2, 1), LENGTH)
        rotary = rotary_of(self.model, hidden, positions) if with_rotary else None
        row = prompt_rows(self.model.layers[1], hidden, last, rotary, self.mask.bool().unsqueeze(1))
        same("the row that ranks", output.attentions[1][:, :, -1:], row)

    def stock(self, embeds: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Last hidden states [B, n, D] of the stock forward on [B, n, D], in one pass."""
        given = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        return self.model(**given, use_cache=False).last_hidden_state

    def reduced(self, dropped: Tensor | None) -> tuple[Tensor, Tensor, Segment]:
        """Last hidden states [B, S, D] of the prompt and [B, 1, D] of one more token in the decoder loop, and what it
        kept of the prompt; positions are closed up where columns are dropped."""
        visual = self.visual.sum(dim=1).tolist()
        kept = visual if dropped is None else (self.visual & ~dropped).sum(dim=1).tolist()
        embeds = self.embeds.clone()
        if dropped is not None:
            embeds[:, :LENGTH][dropped] = 3.0  # must not matter
        fitted = Fitted(Method(), None, (), None, NUM_LAYERS, True, True, self.ours.config)
        self.ours.reduction = SimpleNamespace(fitted=fitted, last=None, force=Force(), capture=None)
        prompt = self.ours(
            inputs_embeds=embeds[:, :LENGTH],
            attention_mask=self.mask[:, :LENGTH],
            position_ids=self.positions[..., :LENGTH],
            use_cache=True,
            visual_prompt=VisualPrompt(
                self.visual,
                [1, 1],
                visual,
                kept,
                [LENGTH, LENGTH - PADDING],
                None if dropped is None else self.visual & ~dropped,
            ),
        )
        step = self.ours(
            inputs_embeds=embeds[:, LENGTH:],
            attention_mask=self.mask,
            position_ids=self.positions[..., LENGTH:],
            use_cache=True,
            **{CACHE: getattr(prompt, CACHE)},
        )
        return prompt.last_hidden_state, step.last_hidden_state, self.ours.reduction.last.segments[-1]


def same(what: str, stock: Tensor, ours: Tensor) -> None:
    """Raise LibraryChanged if what is computed here is not what the library gives."""
    difference = (stock - ours).abs().max().item() if stock.shape == ours.shape else torch.inf
    if not difference <= TOLERANCE * max(1.0, stock.abs().max().item()):
        raise LibraryChanged(f"{what} to be the same from transformers and from vscan", f"{difference:.2g} apart")
