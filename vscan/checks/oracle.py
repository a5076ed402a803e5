"""What a reduced prompt has to give: the stock decoder on the full prompt, in which a dropped token stays where it is
and is only hidden from every query. Nothing is shortened, renumbered or cached.

    with vscan.reduce(model, ...) as reduction, recorded(model) as record:
        output = model.generate(**inputs, ...)
    logits = masked_logits(model, record, answers)

`vscan.selfcheck` and the tests compare with it; it is slow.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache import PromptState
from ..compat import attention_weights, is_mrope, rotary_of, text_model_of
from ..masks import padding_mask


@dataclass
class Record:
    """What the decoder was given of a prompt, and what became of it.

    Args:
        embeds: [B, L, D], with whatever dropped placeholders hold.
        valid: bool [B, L], columns that are no padding.
        positions: long [B or 1, L], or [3, B or 1, L] for M-RoPE.
        state: the prompt's segments.
        compact_positions, rank_with_rotary: of the reduction.
    """

    embeds: Tensor
    valid: Tensor
    positions: Tensor
    state: PromptState
    compact_positions: bool
    rank_with_rotary: bool

    def seen(self, stage: int) -> Tensor:
        """Bool [B, L]: the columns that the layers of a segment see."""
        segment = self.state.segments[stage]
        columns = segment.columns.to(self.valid.device)
        valid = (
            torch.ones_like(columns, dtype=torch.bool) if segment.valid is None else segment.valid.to(columns.device)
        )
        found = torch.zeros(self.valid.shape[0], self.valid.shape[1] + 1, dtype=torch.bool, device=columns.device)
        # What a segment is filled up with goes to a column of its own.
        return found.scatter_(1, torch.where(valid, columns, self.valid.shape[1]), True)[:, :-1]


@contextmanager
def recorded(model) -> Iterator[list[Record]]:
    """Record the prompts with pictures that run under a reduction; one without a picture leaves nothing."""
    text_model, records = text_model_of(model), []

    def after(module, args, kwargs, output):
        if kwargs.get("visual_prompt") is None:
            return
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        batch, length = embeds.shape[:2]
        valid = padding_mask(kwargs.get("attention_mask"), length)
        if valid is None:
            valid = torch.ones(batch, length, dtype=torch.bool, device=embeds.device)
        if positions is None:
            positions = torch.arange(length, device=embeds.device).unsqueeze(0)
        reduction = module.reduction
        records.append(
            Record(
                embeds,
                valid,
                positions[-3:] if positions.ndim == 3 else positions,
                reduction.last,
                reduction.fitted.compact_positions,
                reduction.fitted.rank_with_rotary,
            )
        )

    hook = text_model.register_forward_hook(after, with_kwargs=True)
    try:
        yield records
    finally:
        hook.remove()


@torch.no_grad()
def masked_logits(model, record: Record, answers: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run the stock decoder on a prompt and its answer, with what was dropped hidden.

    Args:
        model: the model that generates, dense again.
        answers: long [B, n], what was decoded after the prompt.

    Returns:
        Logits [B, 1 + n, V] of the last column of the prompt and of the answer; and for every pruning stage [B, L]
        fp32, what the last column of the prompt attends to in the layer before which it prunes, mean over heads.
    """
    text_model = text_model_of(model)
    batch, length = record.valid.shape
    num_new = answers.shape[1]
    embeds = torch.cat((record.embeds, text_model.embed_tokens(answers)), dim=1)
    ahead = torch.ones(batch, num_new, dtype=torch.bool, device=embeds.device)
    full = record.positions.expand(*record.positions.shape[:-2], batch, -1)
    following = full.amax(dim=(0, 2) if full.ndim == 3 else 1).unsqueeze(1) + 1
    following = following + torch.arange(num_new, device=embeds.device)
    full = torch.cat((full, following.expand(*full.shape[:-2], -1, -1)), dim=-1)
    embeds = embeds.masked_fill(~torch.cat((record.seen(0), ahead), dim=1).unsqueeze(-1), 3.0)  # must not matter
    starts = [segment.start for segment in record.state.segments]
    rows = []

    def of_stage(stage: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        seen = torch.cat((record.seen(stage), ahead), dim=1)
        positions = full
        if record.compact_positions:
            positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
            positions = positions.expand(3, -1, -1) if is_mrope(text_model) else positions
        causal = torch.ones(length + num_new, length + num_new, dtype=torch.bool, device=embeds.device).tril()
        hidden_keys = torch.zeros((), dtype=embeds.dtype, device=embeds.device).expand(batch, 1, *causal.shape)
        hidden_keys = hidden_keys.masked_fill(~(causal & seen.unsqueeze(1)).unsqueeze(1), torch.finfo(embeds.dtype).min)
        return hidden_keys, rotary_of(text_model, embeds, positions)

    def before(index: int, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        for stage, start in enumerate(starts):
            if start == index and stage > 0:
                mask, (cos, sin) = of_stage(stage - 1)
                if not record.rank_with_rotary:
                    cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
                weights = attention_weights(text_model.layers[index], hidden, mask, (cos, sin))
                rows.append(weights[:, :, length - 1, :length].float().mean(dim=1))
        last = max(stage for stage, start in enumerate(starts) if start <= index)
        mask, rotary = of_stage(last)
        return args, {**kwargs, "attention_mask": mask, "position_embeddings": rotary}

    with ExitStack() as undo:
        for index, layer in enumerate(text_model.layers):

            def hook(module, args, kwargs, index=index):
                return before(index, args, kwargs)

            undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        hidden = text_model(inputs_embeds=embeds, position_ids=full, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[:, length - 1 :]), rows
