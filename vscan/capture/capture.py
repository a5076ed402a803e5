"""`Capture`: the recordings of one reduction, and the way of a prompt into and out of their buffers."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..cache import Cached
from ..checks.guards import Generation, generation
from ..compat import CACHE, cache_size
from ..masks import padding_mask
from ..plan import Plan
from ..prompt import VisualPrompt
from .asked import KNOWN, check_call
from .buckets import Uncaptured, bucket_of, check_bound
from .captured import CapturedCache
from .identity import Identity
from .layers import bytes_of
from .recorder import Recorder, recorder_for
from .regions import EncodeRegion, PromptRegions

# Why the pictures of the prompt under way were not encoded by a recording; None where they were.
encoding: ContextVar[str | None] = ContextVar("encoding", default=None)


class Capture:
    """The recordings of one reduction.

    Args:
        reduction: that it belongs to.
        most_bytes: that static buffers and recordings may take; those used least recently leave.
        recorder_for: from a device to what records there, or None.
    """

    def __init__(
        self, reduction, most_bytes: int, recorder_for: Callable[[torch.device], Recorder | None] = recorder_for
    ):
        self.reduction, self.most_bytes, self.recorder_for = reduction, most_bytes, recorder_for
        self.regions: OrderedDict[Hashable, PromptRegions | EncodeRegion] = OrderedDict()
        self.refused: dict[Hashable, str] = {}
        self.identities: dict[str, Identity] = {}
        self.recorder: Recorder | None = None
        self.device: torch.device | None = None
        self.lock = threading.RLock()
        self.owner: Generation | None = None  # the `generate` call whose prompt lies in the buffers
        self.handed_out: weakref.ref[CapturedCache] | None = None
        self.running: PromptRegions | None = None

    # ------------------------------------------------------------------------------------------------------ the regions

    def encode(
        self,
        function: Callable[[Tensor], tuple[list[Tensor], Any]],
        pixels: Tensor,
        parts: list[nn.Module],
        key: Hashable,
        reason: str | None = None,
    ) -> tuple[list[Tensor], Any]:
        """Encode pictures, by a recording where that can be.

        Args:
            function: from pixels to tensors and what the host knows; reads nothing but the pixels.
            pixels: of any shape.
            parts: modules that run.
            key: what else the function depends on.
            reason: why it cannot be recorded; None where nothing is known.

        Returns:
            What the function gives.
        """
        try:
            if reason is not None:
                raise Uncaptured(reason)
            with self._alone():
                self._check_identity("encoder", parts, True)
                self._check_state(pixels.device)
                name = ("encode", tuple(pixels.shape), pixels.dtype, pixels.device, key)
                region = self._find(name)
                if region is None:
                    region = self._record(name, lambda: EncodeRegion(self.recorder, function, pixels))
                else:
                    region.replay(pixels)
                encoding.set(region.failed and f"pictures are encoded eagerly: {region.failed}")
                return region.results
        except Uncaptured as uncaptured:
            encoding.set(f"pictures are encoded eagerly: {uncaptured}")
            return function(pixels)

    def run(self, decoder, visual_prompt: VisualPrompt | None, **kwargs):
        """What `Decoder.forward_x` does, by recordings where that can be; arguments and result are its own, but for the
        last hidden state of a prompt, of which only the last column is handed out."""
        if visual_prompt is None and isinstance(kwargs.get(CACHE), CapturedCache):
            return self._step(decoder, **kwargs)
        if visual_prompt is None:
            return decoder.forward_x(**kwargs)
        try:
            return self._prefill(decoder, visual_prompt, kwargs)
        except Uncaptured as reason:
            output = decoder.forward_x(visual_prompt=visual_prompt, **kwargs)
            self.reduction.last.eager = str(reason)
            return output

    def clear(self) -> None:
        """Let all recordings and their buffers go."""
        with self.lock:
            self._leave()
            self._drop(list(self.regions))
            self.identities.clear()
            self.refused.clear()
            self.recorder = None

    def _prefill(self, decoder, prompt: VisualPrompt, kwargs: dict):
        call = generation.get()
        hidden = kwargs.get("inputs_embeds")
        room = check_call(self.reduction.family.model, decoder, call, kwargs)
        if self.reduction.fitted.frame_cls is not None:
            raise Uncaptured("the model sees clips")
        with self._alone():
            if self.owner is call:
                raise Uncaptured("it is the second prompt of its generate call")
            self._check_identity("decoder", [decoder], False)
            self._check_state(hidden.device)
            exact = Plan.of(self.reduction.fitted, prompt)
            positions = kwargs.get("position_ids")
            positions = positions[-3:] if positions is not None and positions.ndim == 3 else positions
            bucket = bucket_of(
                prompt,
                exact.stages[0].num_visual,
                room,
                axes=0 if positions is None or positions.ndim == 2 else 3,
                width=hidden.shape[2],
                dtype=hidden.dtype,
                device=hidden.device,
            )
            bound = bucket.plan(self.reduction.fitted)
            check_bound(exact, bound, self.reduction.fitted.method)
            regions, mask = self._find(bucket), padding_mask(kwargs.get("attention_mask"), hidden.shape[1])
            self._leave()

            def make() -> PromptRegions:
                made = PromptRegions(self.recorder, decoder, bucket)
                made.fill(hidden, mask, positions, prompt)
                made.run_prefill()
                return made

            if regions is None:
                regions = self._record(bucket, make, bytes_of(bucket, bound, decoder.config))
            else:
                regions.fill(hidden, mask, positions, prompt)
                regions.run_prefill()
            self.owner, self.running = call, regions
        return self._hand_out(call, prompt, exact, regions, hidden.shape[1])

    def _hand_out(self, call: Generation, prompt: VisualPrompt, exact: Plan, regions: PromptRegions, length: int):
        """The output of a prefill, with a cache, a state and a hidden state that are the prompt's own."""
        outputs = [part.clone() for part in regions.prefill.outputs]
        state = regions.state_of(outputs)
        state.length = length
        by_start = {stage.start: stage for stage in exact.stages}
        state.segments = [
            replace(
                segment,
                prompt=prompt,
                num_visual=by_start[segment.start].num_visual,
                num_valid=by_start[segment.start].num_valid,
            )
            for segment in state.segments
        ]
        state.cached = Cached(list(regions.prompt_lengths), *cache_size(regions.cache))
        state.captured, state.eager = regions.failed is None, regions.failed or encoding.get()
        encoding.set(None)
        cache = CapturedCache(regions.cache, regions.prompt_lengths, state, self.reduction.force)
        self.handed_out = weakref.ref(cache)
        prompt.entered, prompt.is_captured, prompt.cache = True, True, weakref.ref(cache)
        call.encoded, call.reduced = False, True
        self.reduction.last = state
        return BaseModelOutputWithPast(last_hidden_state=outputs[0], **{CACHE: cache})

    def _step(self, decoder, **kwargs):
        cache, hidden = kwargs[CACHE], kwargs.get("inputs_embeds")
        cache.force.check()
        hidden = decoder.embed_tokens(kwargs["input_ids"]) if hidden is None else hidden
        state, number = cache.visual_prompt_state, cache.num_new
        is_here = self.handed_out is not None and self.handed_out() is cache and generation.get() is self.owner
        regions, mask, positions = self.running, kwargs.get("attention_mask"), kwargs.get("position_ids")
        asks = any(kwargs.get(name) for name in kwargs.keys() - KNOWN)
        if not is_here or hidden.shape[1] != 1 or asks or number >= regions.bucket.room:
            cache.update()  # which says what was expected
        if positions is None:
            positions = state.positions_after(cache.get_seq_length(), 1)
        with self.lock:
            regions.token.copy_(hidden)
            regions.position.copy_(positions[-3:] if positions.ndim == 3 else positions)
            if isinstance(mask, Tensor) and mask.ndim == 2:
                regions.answer[:, regions.bucket.length + number].copy_(mask[:, -1] != 0)
            regions.number.fill_(number)
            last = regions.run_step().clone()
            if regions.failed is not None:
                state.captured, state.eager = False, f"it could not be recorded: {regions.failed}"
        cache.num_new += 1
        return BaseModelOutputWithPast(last_hidden_state=last, **{CACHE: cache})

    # ------------------------------------------------------------------------------------------- what is checked before

    def _check_state(self, device: torch.device) -> None:
        if torch.is_grad_enabled():
            raise Uncaptured("gradients are recorded")
        if torch.is_autocast_enabled(device.type if device.type != "meta" else "cpu"):
            raise Uncaptured("autocast is on")
        if torch.compiler.is_compiling():
            raise Uncaptured("it is being compiled")
        if getattr(self.reduction.family.model, "is_quantized", False):
            raise Uncaptured("its weights are quantized")
        if self.recorder is None:
            self.recorder, self.device = self.recorder_for(device), device
        if self.recorder is None:
            raise Uncaptured(f"nothing records on {device.type}")
        if device != self.device:
            raise Uncaptured(f"it lies on {device}, other parts on {self.device}")

    def _check_identity(self, name: str, roots: list[nn.Module], with_root_hooks: bool) -> None:
        """Let go what was recorded of a model that is another one by now."""
        known = self.identities.get(name)
        if known is not None and known.holds():
            return
        if known is not None:
            self.clear()
        self.identities[name] = Identity(roots, with_root_hooks)

    def _alone(self):
        """For the length of a block: no other call is in one, nor has a prompt in the buffers."""
        return _Alone(self)

    # -------------------------------------------------------------------------------------------------- what is kept

    def _find(self, name: Hashable):
        if name in self.refused:
            raise Uncaptured(self.refused[name])
        if name in self.regions:
            self.regions.move_to_end(name)
        return self.regions.get(name)

    def _record(self, name: Hashable, make: Callable[[], Any], num_bytes: int = 0):
        """Record a region within the bytes that there may be; an error leaves nothing behind."""
        if num_bytes > self.most_bytes:
            self.refused[name] = f"its buffers take {num_bytes} bytes, more than capture_bytes={self.most_bytes}"
            raise Uncaptured(self.refused[name])
        self._make_room(num_bytes)
        made = self.regions[name] = make()
        if made.failed is not None:  # what ran beforehand gave this prompt's results all the same
            self.refused[name] = f"it could not be recorded: {made.failed}"
            del self.regions[name]
            return made
        self._make_room(0, name)
        if self.num_bytes > self.most_bytes:  # it is used this once
            self.refused[name] = f"it takes {self.num_bytes} bytes, more than capture_bytes={self.most_bytes}"
            del self.regions[name]
        return made

    @property
    def num_bytes(self) -> int:
        """Bytes of all static buffers and recordings."""
        of_recorder = 0 if self.recorder is None else self.recorder.num_bytes
        return sum(region.num_bytes for region in self.regions.values()) + of_recorder

    def _make_room(self, num_bytes: int, but: Hashable = None) -> None:
        for name in list(self.regions):
            if self.num_bytes + num_bytes <= self.most_bytes:
                return
            if name != but:
                self._drop([name])

    def _drop(self, names: list[Hashable]) -> None:
        if names and self.recorder is not None:
            self.recorder.wait()
        for name in names:
            del self.regions[name]
        if not self.regions and self.recorder is not None:
            self.recorder.forget()

    def _leave(self) -> None:
        """The prompt that lies in the buffers is over."""
        cache = None if self.handed_out is None else self.handed_out()
        if cache is not None:
            cache.leave()
        self.handed_out = self.running = self.owner = None


class _Alone:
    def __init__(self, capture: Capture):
        self.capture = capture

    def __enter__(self):
        owner = self.capture.owner
        if owner is not None and not owner.ended and owner is not generation.get():
            raise Uncaptured("another prompt is in flight")
        if not self.capture.lock.acquire(blocking=False):
            raise Uncaptured("another prompt is in flight")

    def __exit__(self, *error):
        self.capture.lock.release()
