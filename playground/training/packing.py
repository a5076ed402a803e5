"""Many questions about one picture behind one visual prefix: each sees the prefix and itself, and no other question.

A prompt is prefix, visual tokens, question, answer, as `llava.conversation` writes it; packed, the first two are
computed once for all questions.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import build_prompt
from llava.mm_utils import tokenizer_image_token
from vscan.compat import apply_rotary_pos_emb, projections

from ..scenes.questions import Question
from ..scenes.world import SHAPES
from .labels import THING_CLASSES, thing_labels
from .sizes import DEEP, TINY

IGNORED = -100
NOUNS = (*SHAPES, "sign", "object")
# An answer tells little of what had to be looked up for it: one word, several layers later. So where a thing's name
# ends, the states halfway (`Depth.named_after`) are to know the thing; twenty names are asked about a picture.
NAMED_AFTER = {depth.num_layers: depth.named_after for depth in (TINY, DEEP)}
NAMING_WEIGHT = 0.3
THING_WEIGHTS = (1.0, 1.0, *[0.5] * (len(THING_CLASSES) - 2))
NO_THING = [-1] * len(THING_CLASSES)
KIND_WEIGHTS = {"reading": 3.0, "attribute": 2.0}  # of the fewest tokens: one or two signs, three words


@dataclass
class Packed:
    """The questions of a batch of pictures.

    Args:
        prefix: ids before the visual tokens, long [P].
        ids: of all questions and answers, one after another, long [B, T].
        groups: which question a token belongs to, long [B, T]; -1 fills up.
        places: a token's place in its question, long [B, T].
        targets: the next token where it is the answer's, else IGNORED, long [B, T].
        weights: how much a target counts in the loss, float [B, T].
        things: what the thing is whose name ends at a token, long [B, T, 9] (`thing_labels`); -1 at all other tokens.
        questions: of every picture, in the order of `groups`.
    """

    prefix: Tensor
    ids: Tensor
    groups: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor
    things: Tensor
    questions: list[list[Question]]

    @property
    def is_name(self) -> Tensor:
        """Bool [B, T]."""
        return self.things[..., 0] >= 0


class Packer:
    """Turns questions into ids."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.nouns = {tokenizer(f"the {noun}").input_ids[-1] for noun in NOUNS}
        self._encode = lru_cache(maxsize=1 << 16)(self._encode_now)

    def _encode_now(self, text: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        prompt = build_prompt(text, "vicuna_v1", False, True)
        ids = tokenizer_image_token(prompt, self.tokenizer)
        image = ids.index(IMAGE_TOKEN_INDEX)
        full = tokenizer_image_token(f"{prompt} {answer}{self.tokenizer.eos_token}", self.tokenizer)
        assert full[: len(ids)] == ids
        return ids[:image], ids[image + 1 :], full[len(ids) :]

    def __call__(self, questions: list[list[Question]], device) -> Packed:
        rows = []
        for of_picture in questions:
            columns: list[list] = [[], [], [], [], [], []]
            for group, question in enumerate(of_picture):
                prefix, ids, answer = self._encode(question.text, question.answer)
                length = len(ids) + len(answer) - 1
                columns[0] += ids + answer[:-1]
                columns[1] += [group] * length
                columns[2] += range(length)
                columns[3] += [IGNORED] * (len(ids) - 1) + answer
                # A box has many tokens and would else drown the one-word answers.
                columns[4] += [KIND_WEIGHTS.get(question.kind, 1.0) / len(answer) ** 0.5] * length
                labels = [NO_THING] * length
                named = [place for place, token in enumerate(ids) if token in self.nouns]
                if question.kind != "counting":
                    for place, thing in zip(named, question.about or [None], strict=True):
                        labels[place] = thing_labels(thing)
                columns[5] += labels
            rows.append(columns)
        longest = max(len(columns[0]) for columns in rows)
        fill = (0, -1, 0, IGNORED, 0.0, NO_THING)
        arrays = [
            np.array([columns[index] + [fill[index]] * (longest - len(columns[index])) for columns in rows])
            for index in range(6)
        ]
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        tensors[4] = tensors[4].float()
        return Packed(torch.tensor(prefix, device=device), *tensors, questions)


def answer_states(llama: LlamaForCausalLM, packed: Packed, visual: Tensor, positions: Tensor, start: Tensor):
    """The decoder's normed states where an answer's token comes next, and those at names, halfway.

    Args:
        visual: visual tokens [B, V, D].
        positions: theirs, float [B, V]; the prefix stands at 0, 1, ...
        start: the position of a question's first token, float [B].

    Returns:
        [number of targets, D], in the order of `packed.targets` flattened; [number of names, D] after the layers that
        `NAMED_AFTER` says, in the order of `packed.things`.
    """
    model = llama.model
    batch, num_text = packed.ids.shape
    prefix = model.embed_tokens(packed.prefix).expand(batch, -1, -1)
    hidden = torch.cat([prefix, visual, model.embed_tokens(packed.ids)], 1)
    num_prefix = hidden.shape[1] - num_text
    before = torch.arange(len(packed.prefix), device=visual.device, dtype=torch.float32).expand(batch, -1)
    places = torch.cat([before, positions, start[:, None] + packed.places], 1)
    cos, sin = model.rotary_emb(hidden, places)
    same = packed.groups[:, :, None] == packed.groups[:, None, :]
    mask = hidden.new_zeros(batch, 1, num_text, num_prefix + num_text)
    mask[:, 0, :, num_prefix:].masked_fill_(~same.tril(), float("-inf"))
    named = None
    for index, layer in enumerate(model.layers):
        is_last = index == len(model.layers) - 1
        hidden = _layer(layer, hidden, (cos, sin), mask, num_prefix, is_last)
        if index + 1 == NAMED_AFTER[len(model.layers)]:
            named = hidden[:, num_prefix:][packed.is_name]
    return norm(model.norm, hidden[packed.targets != IGNORED]), named  # the last layer left the questions alone


def norm(module: nn.Module, hidden: Tensor) -> Tensor:
    """Llama's norm by torch's own kernel, which is faster than its parts."""
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


def _layer(layer, hidden: Tensor, rotation, mask: Tensor, num_prefix: int, is_last: bool) -> Tensor:
    """One decoder layer; the last is computed for the questions only, nobody reads the rest."""
    attention = layer.self_attn
    input_norm, to_query, to_key, head_dim, _ = projections(layer)
    normed = norm(input_norm, hidden)

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    query, key = apply_rotary_pos_emb(heads(to_query(normed)), heads(to_key(normed)), *rotation)
    value = heads(attention.v_proj(normed))
    output = F.scaled_dot_product_attention(query[:, :, num_prefix:], key, value, attn_mask=mask)
    if not is_last:
        front = [states[:, :, :num_prefix] for states in (query, key, value)]
        output = torch.cat([F.scaled_dot_product_attention(*front, is_causal=True), output], 2)
    else:
        hidden = hidden[:, num_prefix:]
    hidden = hidden + attention.o_proj(output.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(norm(layer.post_attention_layernorm, hidden))


def answer_loss(
    llama: LlamaForCausalLM, head: nn.Module, packed: Packed, visual: Tensor, positions: Tensor, start: Tensor
) -> Tensor:
    """Cross-entropy of the answers, weighted as packed, and of what the named things are.

    Args:
        head: from states at names to logits of `thing_labels`' classes.
    """
    states, named = answer_states(llama, packed, visual, positions, start)
    told = packed.targets != IGNORED
    each = F.cross_entropy(llama.lm_head(states), packed.targets[told], reduction="none")
    weights = packed.weights[told]
    return (each * weights).sum() / weights.sum() + NAMING_WEIGHT * naming_loss(head, packed, named)


def naming_loss(head: nn.Module, packed: Packed, named: Tensor) -> Tensor:
    """Cross-entropy of what the named things are, summed over `thing_labels`' classes."""
    labels = packed.things[packed.is_name]
    losses = []
    for index, logits in enumerate(head(named).split(THING_CLASSES, -1)):
        losses.append(THING_WEIGHTS[index] * F.cross_entropy(logits, labels[:, index]))
    return sum(losses)


@torch.no_grad()
def accuracies(llama: LlamaForCausalLM, packed: Packed, visual: Tensor, positions: Tensor, start: Tensor) -> dict:
    """Share of questions of each kind whose every answer token is the likeliest one: what greedy decoding would say."""
    states, _ = answer_states(llama, packed, visual, positions, start)
    told = packed.targets != IGNORED
    right = llama.lm_head(states).argmax(-1) == packed.targets[told]
    rows = torch.arange(len(packed.ids), device=right.device)[:, None].expand_as(packed.groups)[told]
    groups = packed.groups[told]
    wrong = {
        (row, group) for row, group, ok in zip(rows.tolist(), groups.tolist(), right.tolist(), strict=True) if not ok
    }
    by_kind: dict[str, list[bool]] = {}
    for row, questions in enumerate(packed.questions):
        for group, question in enumerate(questions):
            by_kind.setdefault(question.kind, []).append((row, group) not in wrong)
    return {kind: round(sum(oks) / len(oks), 4) for kind, oks in sorted(by_kind.items())}
