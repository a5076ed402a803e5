"""The regions: plain functions from static input buffers to static output buffers, the same on every device.

The code inside them is the tested one (`Family.encode`, `Decoder.forward_x`): what is said here is what it is given.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..cache import PromptState
from ..checks.guards import generating
from ..compat import CACHE
from ..select.remembered import holding
from .buckets import Bucket, lengths_of
from .layers import CacheBuffers
from .recorder import NotRecorded, Recorder


class Region:
    """A function whose results lie in the same buffers after every run.

    Args:
        function: of static input buffers to a list of tensors.

    Attributes:
        failed: why it could not be recorded, and runs again instead; None where it was.
    """

    def __init__(self, recorder: Recorder, function: Callable[[], Sequence[Tensor]]):
        self.function, self.outputs, self.failed = function, None, None
        self.replay, self.held = None, []  # tables that a recording reads where they lay
        try:
            self.replay = recorder.record(self._run)
        except NotRecorded as reason:
            self.replay, self.failed = self._run, str(reason)

    def _run(self) -> None:
        with holding(self.held) if self.replay is None else nullcontext():
            found = self.function()
        if self.outputs is None:
            with torch.inference_mode(False):
                self.outputs = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in found]
        for buffer, part in zip(self.outputs, found, strict=True):
            buffer.copy_(part)

    @property
    def num_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.outputs)


class EncodeRegion:
    """From pixels to what a family's encoding gives.

    Args:
        function: from pixels to tensors, and what the host knows of them.
        pixels: of the first call.
    """

    def __init__(self, recorder: Recorder, function: Callable[[Tensor], tuple[list[Tensor], Any]], pixels: Tensor):
        with torch.inference_mode(False):
            self.pixels = torch.empty(pixels.shape, dtype=pixels.dtype, device=pixels.device)
        self.pixels.copy_(pixels)
        self.host = None

        def encode() -> list[Tensor]:
            with generating(None):
                found, self.host = function(self.pixels)
            return found

        self.region = Region(recorder, encode)

    def replay(self, pixels: Tensor) -> None:
        """Encode other pixels of the same shape."""
        self.pixels.copy_(pixels)
        self.region.replay()

    @property
    def results(self) -> tuple[list[Tensor], Any]:
        """Copies of what was encoded last, which outlive the next run, and what the host knows."""
        return [part.clone() for part in self.region.outputs], self.host

    @property
    def failed(self) -> str | None:
        return self.region.failed

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + self.region.num_bytes

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All static buffers by name."""
        return {"pixels": self.pixels, **{f"out {i}": part for i, part in enumerate(self.region.outputs)}}


class PromptRegions:
    """The prefill and the step of a bucket, on one set of buffers.

    Args:
        recorder: records them.
        decoder: the text model under a reduction.
        bucket: of prompts.
    """

    def __init__(self, recorder: Recorder, decoder, bucket: Bucket):
        self.recorder, self.decoder, self.bucket = recorder, decoder, bucket
        self.bound = bucket.plan(decoder.reduction.fitted)
        self.prompt_lengths = [stage.length for stage in self.bound.of_layers]
        batch, length, axes = bucket.batch, bucket.length, (bucket.axes,) if bucket.axes else ()

        def zeros(*shape: int, dtype=torch.bool) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=bucket.device)

        with torch.inference_mode(False):
            self.hidden = zeros(batch, length, bucket.width, dtype=bucket.dtype)
            self.visual, self.kept, self.mask = zeros(batch, length), zeros(batch, length), zeros(batch, length)
            self.positions = zeros(*axes, batch, length, dtype=torch.long)
            self.padding = zeros(1, dtype=torch.long)
            self.token = zeros(batch, 1, bucket.width, dtype=bucket.dtype)
            self.position = zeros(*axes, batch, 1, dtype=torch.long)
            self.number = zeros(1, dtype=torch.long)
            self.answer = zeros(
                batch, length + bucket.room
            )  # as an attention mask; only what follows the prompt counts
            self.starts = torch.tensor(self.prompt_lengths, device=bucket.device)
            self.layers = CacheBuffers(decoder.config, bucket, lengths_of(self.bound, bucket.room))
        self.cache = Cache(layers=self.layers.layers)
        self.prefill: Region | None = None
        self.step: Region | None = None
        self.state: PromptState | None = None  # of the bucket: host numbers are bounds, tensors are static

    def fill(self, hidden: Tensor, mask: Tensor | None, positions: Tensor | None, prompt) -> None:
        """Write a prompt into the input buffers, padded at the left.

        Args:
            hidden: [B, L, D].
            mask: bool [B, L], or None where nothing is padding.
            positions: long [B or 1, L] or [3, B or 1, L], or None for 0, 1, 2, ...
            prompt: where its visual tokens are.
        """
        padding = self.bucket.length - hidden.shape[1]
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
        kept = prompt.visual if prompt.kept is None else prompt.kept
        self.hidden[:, :padding].zero_()
        self.hidden[:, padding:].copy_(hidden)
        self.positions[..., :padding].zero_()
        self.positions[..., padding:].copy_(positions)
        for buffer, given in ((self.visual, prompt.visual), (self.kept, kept)):
            buffer[:, :padding].fill_(False)
            buffer[:, padding:].copy_(given)
        self.mask[:, :padding].fill_(False)
        self.mask[:, padding:] = True if mask is None else mask
        self.answer.fill_(True)
        self.padding.fill_(padding)

    def run_prefill(self) -> None:
        """Run the prompt in the buffers: recorded the first time, replayed afterwards."""
        if self.prefill is None:
            self.prefill = Region(self.recorder, self._prefill)
        else:
            self.prefill.replay()
        self.state = self.state_of(self.prefill.outputs)
        self.cache.visual_prompt_state = self.state

    def run_step(self) -> Tensor:
        """Run the token in the buffers; returns the last hidden state [B, 1, D], which the next step overwrites."""
        if self.step is None:
            self.step = Region(self.recorder, self._step)
        else:
            self.step.replay()
        return self.step.outputs[0]

    def _prefill(self) -> list[Tensor]:
        self.layers.reset()
        with generating(None):
            output = self.decoder.forward_x(
                inputs_embeds=self.hidden,
                attention_mask=self.mask,
                position_ids=self.positions,
                use_cache=True,
                visual_prompt=self.bucket.prompt(self.visual, self.kept),
                **{CACHE: self.cache},
            )
        self.made = self.cache.visual_prompt_state
        longs, flags = tensors_of(self.made, self.padding)
        return [output.last_hidden_state[:, -1:], torch.cat(longs), torch.cat(flags)]

    def _step(self) -> list[Tensor]:
        torch.add(self.starts, self.number, out=self.layers.counts)
        with generating(None):
            output = self.decoder.forward_x(
                inputs_embeds=self.token,
                attention_mask=self.answer,
                position_ids=self.position,
                use_cache=True,
                **{CACHE: self.cache},
            )
        return [output.last_hidden_state]

    def state_of(self, outputs: Sequence[Tensor]) -> PromptState:
        """What is known of the prompt that ran last, from the prefill's outputs or copies of them."""
        _, longs, flags = outputs
        longs, flags = Parts(longs), Parts(flags)
        following, segments = longs.like(self.made.next_position), []
        for made in self.made.segments:
            segments.append(
                replace(
                    made,
                    columns=longs.like(made.columns),
                    positions=longs.like(made.positions),
                    removed=longs.like(made.removed),
                    valid=flags.like(made.valid),
                    visual=flags.like(made.visual),
                )
            )
        return PromptState(self.bucket.length, following, segments)

    @property
    def failed(self) -> str | None:
        """Why a region could not be recorded; None where they were."""
        return next((region.failed for region in (self.prefill, self.step) if region and region.failed), None)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """All static buffers by name: inputs, outputs, and every layer's cache."""
        names = ("hidden", "visual", "kept", "mask", "positions", "padding", "token", "position", "number", "answer")
        found = {name: getattr(self, name) for name in (*names, "starts")}
        found |= {"states": self.layers.states, "counts": self.layers.counts}
        for name, region in (("prefill", self.prefill), ("step", self.step)):
            found |= {f"{name} {i}": part for i, part in enumerate(region.outputs if region else ())}
        for index, layer in enumerate(self.cache.layers):
            found |= {f"keys {index}": layer.keys, f"values {index}": layer.values}
            found[f"length {index}"] = layer.cumulative_length
        return found

    @property
    def num_bytes(self) -> int:
        parts = {
            name: part for name, part in self.buffers.items() if name.split()[0] not in ("keys", "values", "length")
        }
        return sum(part.nbytes for part in parts.values())


class Parts:
    """A flat tensor that is cut into parts, one after another."""

    def __init__(self, flat: Tensor):
        self.flat, self.taken = flat, 0

    def like(self, tensor: Tensor) -> Tensor:
        """The next part, in the shape of a tensor."""
        start, self.taken = self.taken, self.taken + tensor.numel()
        return self.flat[start : self.taken].view(tensor.shape)


def tensors_of(state: PromptState, padding: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a prompt's state, flat, in the order in which `PromptRegions.state_of` takes them.

    Args:
        padding: long [1], columns that were put before the prompt; columns are counted without them.

    Returns:
        Long ones, and bool ones.
    """
    longs, flags = [state.next_position], []
    for segment in state.segments:
        longs += [segment.columns - padding, segment.positions, segment.removed]
        flags += [segment.valid, segment.visual]
    return [part.flatten() for part in longs], [part.flatten() for part in flags]
