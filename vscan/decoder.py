"""The one decoder loop: a prompt that gets shorter on its way through the layers, and the tokens decoded after it.

`Decoder` is mixed into a transformers text model (Llama, Qwen2.5-VL). A *segment* is a run of layers that see the same
prompt; each has its own attention mask, positions and cache length. Masks and rotary embeddings are made once per
segment, and positions reach the layers as rotary embeddings only: as numbers, positions with gaps would be read as
packed sequences.
"""

import weakref
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .cache import PromptState, ReducedCache, fit_static, hold, state_of
from .checks.guards import check_dense, check_prefill, check_step, generation
from .compat import (
    ARGUMENTS,
    CACHE,
    cache_of,
    capture_outputs,
    causal_mask,
    held,
    merge_with_config_defaults,
    rotary_of,
    take_cache,
)
from .masks import all_true, padding_mask
from .methods.base import Entry, Stage
from .plan import Plan
from .prompt import Segment, VisualPrompt
from .select.attention import device_of, queries_and_keys


class Decoder:
    """A text model whose prompt gets shorter.

    Modifications:
    - `forward` hands prompts with visual tokens, and what is decoded after them, to `forward_x` while `reduction` is
      set; everything else goes to the original forward.
    - `forward_x` drops the visual tokens that the vision stage flagged and runs the layers segment by segment.
    - `layer_prune` shortens the prompt before a pruning layer.
    """

    reduction = None

    def forward(self, *args, visual_prompt: VisualPrompt | None = None, **kwargs):
        kwargs = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        if self.reduction is None:
            return super().forward(**kwargs)
        new = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        cache = kwargs[CACHE] = take_cache(kwargs)
        force = self.reduction.force
        if visual_prompt is not None or state_of(cache, new.shape[1]) is not None:
            if isinstance(cache, ReducedCache) and cache.force is not force:
                cache.force.check()
                raise ValueError("expected a cache of this reduction's own, got one that another reduction has filled")
            if self.reduction.capture is not None:
                return self.reduction.capture.run(self, visual_prompt=visual_prompt, **kwargs)
            return self.forward_x(visual_prompt=visual_prompt, **kwargs)
        begins = check_dense(cache, new.shape[1], force)
        output = super().forward(**kwargs)
        if begins:
            self.reduction.last, filled = None, cache_of(output)
            if filled is not None:
                filled.filled_under = force
        return output

    @merge_with_config_defaults
    @capture_outputs
    def forward_x(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        visual_prompt: VisualPrompt | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the layers on a prompt with visual tokens, or on the tokens that follow it.

        Args:
            inputs_embeds: [B, L, D]; what placeholders without a token hold does not matter.
            attention_mask: [B, L], or what generate makes of it for a static cache, or None.
            position_ids: long [B or 1, L], positions in the full prompt, or None; for M-RoPE [3 or 4, B or 1, L].
            cache: a KV cache, empty before the prompt, or None; under any name that transformers gives it.
            visual_prompt: where the visual tokens are; None while decoding.

        Returns:
            last_hidden_state [B, S, D] of the last segment, S <= L; `Reduction.kept` says which columns these are.

        Raises:
            LibraryChanged: if the cache does not hold afterwards what the layers were given.
        """
        other_name = take_cache(kwargs)
        cache = other_name if cache is None else cache
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is not None and position_ids.ndim == 3:
            position_ids = position_ids[-3:]  # M-RoPE; text positions, which serve to make masks, may come first
        num_layers, num_new = self.config.num_hidden_layers, hidden.shape[1]
        given = (hidden, attention_mask, position_ids, cache)
        if visual_prompt is not None:
            prompt = Prefill(self, visual_prompt, *given)
        else:
            prompt = Decoding(cache.visual_prompt_state, *given)
            before, _ = held(cache, 0)

        for index, layer in enumerate(self.layers[:num_layers]):
            if index in prompt.starts:
                hidden, valid, positions = prompt.start(index, hidden)
                mask, rotary = self.masks(hidden, valid, cache, index), self.rotary(hidden, positions)
            prompt.before = hidden
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=None,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
            hidden = self.after_layer(index, hidden, prompt)
        if visual_prompt is not None:
            state = prompt.state
            state.cached = None if cache is None else check_prefill(cache, state, num_layers)
            visual_prompt.cache = None if cache is None else weakref.ref(cache)
            self.reduction.last = state
        else:
            check_step(cache, before, num_new)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{CACHE: cache})

    def layer_prune(self, layer_idx: int, hidden: Tensor, segment: Segment, *prompt) -> tuple[Tensor, Segment]:
        """Let the method shorten the prompt before a layer; by default VScan's way, see `Method.prune`.

        Args:
            layer_idx: the layer about to run.
            hidden: its input [B, S, D].
            segment: what the columns of `hidden` are.
            prompt: the `Prefill` under way.

        Returns:
            The shortened hidden states and the segment that begins here.
        """
        (prompt,) = prompt
        fitted, planned = self.reduction.fitted, prompt.planned[layer_idx]
        layer = self.layers[layer_idx]
        hidden = hidden.to(device_of(layer))
        segment = segment.to(hidden.device)
        last, allowed = segment.query(prompt.num_columns)
        spared = None if fitted.method.ranks_cls else segment.apart
        back = fitted.method.needs.back
        stage = Stage(
            layer=layer_idx,
            hidden=hidden,
            visual=segment.visual if spared is None else segment.visual & ~spared,
            text=segment.text(prompt.num_columns),
            num=planned.num,
            arriving=planned.competing,
            entry=prompt.entry,
            memory=prompt.memory,
            positions=segment.positions,
            rotary=self.rotary(hidden, segment.positions) if fitted.rank_with_rotary else None,
            final_norm=self.norm,
            last=last,
            allowed=allowed,
            layers=[*self.layers[layer_idx - back : layer_idx], layer],
            inputs=[*[prompt.before][:back], hidden],
            queries_keys=self.queries_keys,
        )
        return segment.shorten(hidden, fitted.method.prune(stage), planned, fitted.compact_positions, spared)

    # What differs between text models. Another one overrides these, in a class that its `Family.decoder` names.

    def masks(self, hidden: Tensor, valid: Tensor | None, cache, index: int):
        """The attention mask of all layers of the segment that begins at `index`. One of columns is made where some
        hold nothing."""
        return causal_mask(self.config, hidden, valid, cache, index, may_skip=valid is None)

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary embeddings (cos, sin) of positions [B or 1, S], or [3, B or 1, S]."""
        return rotary_of(self, hidden, positions)

    def queries_keys(self, layer, hidden: Tensor, columns: Tensor, rotary) -> tuple[Tensor, Tensor]:
        """Queries of some columns and keys of all, as a layer makes them: `vscan.select.attention.queries_and_keys`."""
        return queries_and_keys(layer, hidden, columns, rotary)

    def after_layer(self, index: int, hidden: Tensor, prompt) -> Tensor:
        """What a layer gave, on its way to the next one."""
        return hidden


class Prefill:
    """A prompt on its way through the layers.

    Args:
        model: the text model.
        prompt: where its visual tokens are.
        hidden: [B, L, D].
        attention_mask, position_ids, cache: as the loop got them.

    Raises:
        ValueError: for a cache that holds something.
    """

    def __init__(self, model, prompt: VisualPrompt, hidden, attention_mask, position_ids, cache):
        if cache is not None and int(cache.get_seq_length()) > 0:
            raise ValueError(
                f"a prompt with images needs an empty cache while visual tokens are reduced, got one that holds "
                f"{int(cache.get_seq_length())} tokens: re-using a cache across turns is not supported"
            )
        prompt.entered = True
        call = generation.get()
        if call is not None:
            call.encoded, call.reduced = False, cache is not None
        self.model, self.fitted = model, model.reduction.fitted
        whole = hidden if call is None or call.input_ids is None else call.input_ids
        self.num_columns = whole.shape[1]
        self.segment = Segment.whole(prompt, hidden, padding_mask(attention_mask, hidden.shape[1]), position_ids)
        plan = Plan.of(self.fitted, prompt)
        if cache is not None:
            fit_static(cache, plan, shorten=call is not None and call.makes_cache)
        self.whole, self.planned = plan.stages[0], {stage.start: stage for stage in plan.stages[1:]}
        self.starts = {0, *self.planned}
        self.entry, self.memory, self.before = None, {}, None
        positions, valid = self.segment.positions, self.segment.valid
        if valid is not None:
            positions = positions.masked_fill(~valid, -1)  # padding may have any
        following = positions.amax(dim=(0, 2) if positions.ndim == 3 else 1).unsqueeze(-1) + 1
        self.state = PromptState(hidden.shape[1], following, [])
        if cache is not None:
            hold(cache, self.state, model.reduction.force)

    def start(self, index: int, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Begin a segment: the hidden states [B, S, D], which columns are valid (None for all), and their positions."""
        if index == 0:
            hidden, self.segment = self.segment.drop_empty(hidden, self.whole, self.fitted.compact_positions)
            self.state.segments.append(self.segment)
            if self.planned:
                num_text = max(v - n for v, n in zip(self.whole.num_valid, self.whole.num_visual, strict=True))
                self.entry = Entry(hidden, self.segment.visual, self.segment.text(self.num_columns), num_text)
        if index in self.planned:
            if self.planned[index].num is None:
                self.segment = replace(self.segment, start=index)
            else:
                hidden, self.segment = self.model.layer_prune(index, hidden, self.segment, self)
            self.state.segments.append(self.segment)
        return hidden, self.segment.valid, self.segment.positions


class Decoding:
    """Tokens that follow a reduced prompt; arguments as of `Prefill`."""

    def __init__(self, state: PromptState, hidden, attention_mask, position_ids, cache):
        self.segments, self.cache, self.before = state.by_start, cache, None
        self.starts = self.segments.keys()
        if position_ids is None:
            position_ids = state.positions_after(cache.get_seq_length(), hidden.shape[1])
        self.position_ids, self.after = position_ids, None
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            self.after = attention_mask[:, state.length :] != 0
            if self.segments[0].valid is None and all_true(self.after):
                self.after = None

    def start(self, index: int, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `Prefill.start`."""
        segment = self.segments[index].to(hidden.device)
        positions = self.position_ids.to(hidden.device) - segment.removed
        if segment.valid is None and self.after is None:
            return hidden, None, positions
        num_keys, _ = self.cache.get_mask_sizes(hidden.shape[1], index)
        before, behind = segment.valid, self.after
        if before is None:
            before = torch.ones_like(segment.visual)
        if behind is None:
            behind = before.new_ones(hidden.shape[0], num_keys - segment.length)
        return hidden, torch.cat((before, behind.to(hidden.device)), dim=1), positions
