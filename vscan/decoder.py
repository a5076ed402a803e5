"""The one decoder loop: a prompt that gets shorter on its way through the layers, and the tokens decoded after it.

`Decoder` is mixed into a transformers text model (Llama, Qwen2.5-VL). A *segment* is a run of layers that see the same
prompt; each has its own attention mask, positions and cache length. Masks and rotary embeddings are made once per
segment, and positions reach the layers as rotary embeddings only: as numbers, positions with gaps would be read as
packed sequences.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .cache import PromptState, ReducedCache, hold, state_of
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
from .config import Budget, count
from .masks import all_true, padding_mask
from .prompt import Segment, VisualPrompt
from .select.attention import device_of, prompt_rows
from .select.scan import top

# Before layer k: the hidden states [B, S, D], which columns are valid (bool, or None for all), and their positions.
Boundary = Callable[[int, Tensor], tuple[Tensor, Tensor | None, Tensor]]


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
        given = (hidden, attention_mask, position_ids, cache)
        num_layers, num_new = self.config.num_hidden_layers, hidden.shape[1]
        if visual_prompt is not None:
            state, starts, boundary = _prefill(self, visual_prompt, *given)
        else:
            state = cache.visual_prompt_state
            starts, boundary = _decode(state, *given)
            before, _ = held(cache, 0)

        for index, layer in enumerate(self.layers[:num_layers]):
            if index in starts:
                hidden, valid, positions = boundary(index, hidden)
                # A mask of columns is here because it masks something.
                mask = causal_mask(self.config, hidden, valid, cache, index, may_skip=valid is None)
                rotary = rotary_of(self, hidden, positions)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=None,
                use_cache=use_cache,
                **{CACHE: cache},
                **kwargs,
            )
        if visual_prompt is not None:
            state.cached = None if cache is None else check_prefill(cache, state, num_layers)
            visual_prompt.cache = None if cache is None else weakref.ref(cache)
            self.reduction.last = state
        else:
            check_step(cache, before, num_new)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **{CACHE: cache})

    def layer_prune(self, layer_idx: int, hidden: Tensor, segment: Segment, budget: Budget, num_columns: int):
        """Keep the visual tokens that the last prompt token attends to most, in the layer about to run.

        S_text = mean_h softmax(Q_last K^T / sqrt(d)), with that layer's own norm, q and k, and its rotary embedding
        unless the model is ranked without; the softmax runs over the whole causal row, text included (VScan, section
        4). Every visual token of a row competes.

        Args:
            layer_idx: the layer about to run.
            hidden: its input [B, S, D].
            segment: what the columns of `hidden` are.
            budget: a count per view, or a share of the visual tokens that are left.
            num_columns: columns of the full prompt; later ones are an answer under way.

        Returns:
            The shortened hidden states and the segment that begins here; both unchanged where nothing is dropped.
        """
        keep = [
            count(visual, budget, views)
            for visual, views in zip(segment.num_visual, segment.prompt.num_views, strict=True)
        ]
        if keep == segment.num_visual:
            return hidden, replace(segment, start=layer_idx)
        layer = self.layers[layer_idx]
        hidden = hidden.to(device_of(layer))
        segment = segment.to(hidden.device)
        query, allowed = segment.query(num_columns)
        rotary = rotary_of(self, hidden, segment.positions) if self.reduction.rank_with_rotary else None
        scores = self.reduction.method.scores(prompt_rows(layer, hidden, query, rotary, allowed))
        best = top(scores.masked_fill(~segment.visual, -torch.inf), max(keep))  # B max(keep)
        kept = torch.ones_like(best, dtype=torch.bool)
        if min(keep) < max(keep):
            rank = torch.arange(max(keep), device=hidden.device)
            kept = rank < torch.tensor(keep, device=hidden.device).unsqueeze(1)
        kept = torch.zeros_like(segment.visual).scatter_(1, best, kept)
        return segment.shorten(hidden, kept, keep, layer_idx, self.reduction.compact_positions)


def _prefill(model, prompt: VisualPrompt, hidden, attention_mask, position_ids, cache):
    """Set up the pass over a prompt: its state, the layers where a segment starts, and the function that starts it."""
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"a prompt with images needs an empty cache while visual tokens are reduced, got one that holds "
            f"{int(cache.get_seq_length())} tokens: re-using a cache across turns is not supported"
        )
    prompt.entered = True
    call = generation.get()
    if call is not None:
        call.encoded, call.reduced = False, cache is not None
    budgets = dict(model.reduction.config.layers)
    num_columns = (call and call.num_columns) or hidden.shape[1]
    segment = Segment.whole(prompt, hidden, padding_mask(attention_mask, hidden.shape[1]), position_ids)
    positions = segment.positions
    following = positions.amax(dim=(0, 2) if positions.ndim == 3 else 1).unsqueeze(-1) + 1
    state = PromptState(hidden.shape[1], following, [])
    if cache is not None:
        hold(cache, state, model.reduction.force)

    def boundary(index: int, hidden: Tensor):
        nonlocal segment
        if index == 0:
            hidden, segment = segment.drop_empty(hidden, model.reduction.compact_positions)
            state.segments.append(segment)
        if index in budgets:
            hidden, segment = model.layer_prune(index, hidden, segment, budgets[index], num_columns)
            state.segments.append(segment)
        return hidden, segment.valid, segment.positions

    return state, {0, *budgets}, boundary


def _decode(state: PromptState, hidden, attention_mask, position_ids, cache):
    """Set up the pass over tokens that follow a reduced prompt: where segments start, and the function for it."""
    segments = state.by_start
    if position_ids is None:
        position_ids = state.positions_after(cache.get_seq_length(), hidden.shape[1])
    after = None
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        after = attention_mask[:, state.length :] != 0
        if segments[0].valid is None and all_true(after):
            after = None

    def boundary(index: int, hidden: Tensor):
        segment = segments[index].to(hidden.device)
        positions = position_ids.to(hidden.device) - segment.removed
        if segment.valid is None and after is None:
            return hidden, None, positions
        num_keys, _ = cache.get_mask_sizes(hidden.shape[1], index)
        before, behind = segment.valid, after
        if before is None:
            before = torch.ones_like(segment.visual)
        if behind is None:
            behind = before.new_ones(hidden.shape[0], num_keys - segment.length)
        return hidden, torch.cat((before, behind.to(hidden.device)), dim=1), positions

    return segments.keys(), boundary
