"""The checks of `vscan.selfcheck` on a loaded model: each yields whether it holds, and the line that says so."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import transformers
from torch import nn

from .. import __version__
from ..api import apply_config
from ..checks.oracle import masked_logits, recorded
from ..compat import attention_implementation, cache_of, cache_size, check, held, text_model_of
from ..config import ReductionConfig
from ..io.load import Loaded
from ..models.refusals import replace_method

Line = tuple[bool, str]

SHARE = 1 / 3
# By dtype: how far logits may be apart, as a share of the largest, and attention weights, as a share of each; and the
# share of the kept tokens that rounding may flip.
FULL = (1e-4, 0.0)
LIMITS = {torch.float64: FULL, torch.float32: FULL, torch.float16: (1e-2, 0.02), torch.bfloat16: (5e-2, 0.02)}


@dataclass
class Subject:
    """What is checked.

    Args:
        loaded: a checkpoint.
        prompts: two, prepared.
        layer: of the decoder, before which tokens are pruned.
        num_new: tokens of an answer.
    """

    loaded: Loaded
    prompts: list
    layer: int
    num_new: int

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    @contextmanager
    def reduced(self, share: float) -> Iterator:
        """VScan in force: a share of the tokens after the encoder, and that share of these in the decoder."""
        config = ReductionConfig("vscan", share, {self.layer: share})
        try:
            reduction = apply_config(self.model, config)
        except ValueError:  # a tower without the layers that VScan reads, unless the checkpoint names them
            if getattr(self.model.config, "reduction", None):
                raise
            reduction = apply_config(self.model, replace(config, fields={"local_layer": 0, "global_layer": -1}))
        try:
            yield reduction
        finally:
            reduction.remove()

    def answer(self, prompts: list, num_new: int, reduction=None):
        """Answer prompts greedily as the commands do; returns what `generate` gave, with the logits of every step."""
        outputs, original = [], self.model.generate

        def generate(*args, **kwargs):
            outputs.append(original(*args, **kwargs, return_dict_in_generate=True, output_logits=True))
            return outputs[0].sequences

        options = {"do_sample": False, "temperature": None, "top_p": None}
        options |= {"max_new_tokens": num_new, "min_new_tokens": num_new}
        with ExitStack() as undo:
            replace_method(undo, self.model, "generate", generate)
            self.loaded.answering(reduction, **options)(prompts)
        return outputs[0]

    @property
    def limit(self) -> float:
        return LIMITS[self.model.dtype][0]

    def flips(self, num_kept: int) -> int:
        """How many of the kept tokens rounding may flip."""
        return int(LIMITS[self.model.dtype][1] * num_kept)


def distance(got, expected) -> float:
    """How far some logits are from others at most, as a share of the largest of these; 0 for none."""
    pairs = [(a.float(), b.float()) for a, b in zip(got, expected, strict=True)]
    largest = max((float(b.abs().max()) for _, b in pairs), default=1.0)
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / largest


def within(value: float, limit: float, what: str) -> Line:
    """The line of something that may be at most `limit`, which NaN is not."""
    return value <= limit, f"{what}, limit {limit:g}"


def versions(it: Subject) -> Iterator[Line]:
    dtype = str(it.model.dtype).removeprefix("torch.")
    libraries = f"vscan {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    yield True, f"versions: {libraries}; {it.model.device}, {dtype}, {attention_implementation(it.model)}"


def self_test(it: Subject) -> Iterator[Line]:
    check(it.model)
    passed = "small copies of the model's parts give the same here and in transformers"
    left_out = os.environ.get("VSCAN_SELFTEST") == "0"
    yield True, f"self-test: {'left out by VSCAN_SELFTEST=0' if left_out else passed}"


def keep_all(it: Subject) -> Iterator[Line]:
    dense = it.answer(it.prompts, it.num_new)
    with it.reduced(1.0) as reduction:
        ours = it.answer(it.prompts, it.num_new, reduction)
    tokens = int((dense.sequences != ours.sequences).sum())
    answers = len(it.prompts) * it.num_new
    yield within(tokens, 0, f"keep all: {tokens} of {answers} tokens differ from dense")
    logits = sum(int((a != b).sum()) for a, b in zip(dense.logits, ours.logits, strict=True))
    total = sum(step.numel() for step in dense.logits)
    yield within(logits, 0, f"keep all: {logits} of {total} logits differ from dense in any bit")


def oracle(it: Subject) -> Iterator[Line]:
    with it.reduced(SHARE) as reduction, recorded(it.model) as records:
        output = it.answer(it.prompts, it.num_new, reduction)
    (record,), text_model, note = records, text_model_of(it.model), ""
    with ExitStack() as undo:
        implementation = attention_implementation(text_model)
        if implementation not in ("sdpa", "eager"):  # no other takes the mask that hides a token
            note = f" (of sdpa, the model runs {implementation})"
            undo.callback(text_model.set_attn_implementation, implementation)
            text_model.set_attn_implementation("sdpa")
        expected, (rows,) = masked_logits(it.model, record, output.sequences[:, -it.num_new : -1])
    apart = distance(output.logits, expected.unbind(dim=1))
    what = f"oracle{note}: logits of {it.num_new} steps differ by up to {apart:.1e} of the largest"
    yield within(apart, it.limit, what)
    visual = record.state.segments[0].prompt.visual.to(rows.device)
    below = total = 0
    for row, arrived, kept in zip(rows, record.seen(0) & visual, record.seen(1) & visual, strict=True):
        last = row[arrived].sort(descending=True).values[int(kept.sum()) - 1]
        below += int((row[kept] < last * (1 - it.limit)).sum())
        total += int(kept.sum())
    what = f"oracle: {below} of {total} tokens kept before layer {it.layer} differ from those that it ranks first"
    yield within(below, it.flips(total), what)


def batch(it: Subject) -> Iterator[Line]:
    with it.reduced(SHARE) as reduction:
        together = it.answer(it.prompts, 1, reduction).logits[0]
        kept = [row.kept for row in reduction.stats().rows]
        alone, kept_alone = [], []
        for prompt in it.prompts:
            alone.append(it.answer([prompt], 1, reduction).logits[0][0])
            kept_alone += [row.kept for row in reduction.stats().rows]
    stages = [pair for rows in zip(kept, kept_alone, strict=True) for pair in zip(*rows, strict=True)]
    total, flipped = sum(len(ours) for ours, _ in stages), sum(len(set(ours) - set(other)) for ours, other in stages)
    yield within(flipped, it.flips(total), f"batch: {flipped} of {total} kept tokens differ from a prompt alone")
    # What one flipped token changes rounding does not bound; the oracle has said that the batch's logits are right.
    same = [number for number, of_prompt in enumerate(kept) if of_prompt == kept_alone[number]]
    apart = distance([together[number] for number in same], [alone[number] for number in same])
    what = f"batch: logits differ by up to {apart:.1e} of the largest from a prompt alone"
    yield within(apart, it.limit, f"{what}, of {len(same)} that keep the same")


def cache(it: Subject) -> Iterator[Line]:
    dense = cache_of(it.answer(it.prompts[:1], 1))
    with it.reduced(SHARE) as reduction:
        ours = cache_of(it.answer(it.prompts[:1], 1, reduction))
    stats, length = reduction.stats(), held(dense, 0)[0]
    (row,), num_layers = stats.rows, len(stats.cache_lengths)
    average = (it.layer * SHARE + (num_layers - it.layer) * SHARE**2) / num_layers
    what = f"stages: {row.retention:.3f} of the visual tokens on average over the layers"
    yield within(row.retention, round(1.1 * average, 3), what)  # newlines of LLaVA-NeXT stay after the encoder
    expected = [length - row.visual_tokens + visual for visual in row.tokens_per_layer]
    got = [held(ours, layer)[0] for layer in range(num_layers)]
    wrong = sum({left} != {*found} for left, *found in zip(expected, got, stats.cache_lengths, strict=True))
    what = f"cache: {got[0]} columns in the first and {got[-1]} in the last layer, of {length} dense"
    yield within(wrong, 0, f"{what}; {wrong} layers differ from the stages")
    (num_bytes, _), (dense_bytes, _) = cache_size(ours), cache_size(dense)
    due = dense_bytes * sum(expected) // (length * num_layers)
    wrong = abs(num_bytes - due) + abs(num_bytes - stats.cache_bytes)
    what = f"cache: {num_bytes / dense_bytes:.1%} of the dense bytes; {wrong} bytes differ from the columns' share"
    yield within(wrong, 0, what)


def checks(it: Subject) -> Iterator[Line]:
    """All lines. What a check raises is its failure; where the self-test fails nothing can be reduced."""
    for function in (versions, self_test, keep_all, oracle, batch, cache):
        try:
            yield from function(it)
        except Exception as error:  # a library that changed raises errors of every kind
            name = function.__name__.replace("_", "-" if function is self_test else " ")
            yield False, f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
            if function is self_test:
                return
