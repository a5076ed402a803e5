"""What the golden tests of all rivals share: tiny checkpoints, inputs, one recorded generation, and comparisons.

`../shared/rivals/README.md` describes the data. Checkpoints and inputs always lie in `GOLDEN`; cases lie in `RIVALS`,
which the variable GOLDEN_RIVALS points at another folder of the same layout.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from helpers import normalised
from qwen_helpers import normalised_patches
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, Qwen2_5_VLForConditionalGeneration

import vscan
from llava.model.builder import load_model
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from vscan.compat import CACHE, cache_of
from vscan.methods import METHODS, method_class
from vscan.methods.base import Entry, Kept, Needs, Stage, Views
from vscan.methods.shared.question import Question
from vscan.models.towers import NOTHING, grid_of, run_tower

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"
RIVALS = Path(os.environ.get("GOLDEN_RIVALS") or GOLDEN / "rivals")
NUM_TOKENS, SPAN = 576, 12  # visual tokens of a picture, and the column of the first in the recorded prompts
CLIP = GOLDEN / "rivals" / "cdpruner" / "clip_full"  # a whole one, with the tower of `llava15_vscan`
NEXT, QWEN, QWEN_IMAGE = "llavanext_vscan", "qwen25vl_vscan", 500


def fresh_model(base: str, tower24: bool = False):
    """A new model in the original format, float32 on the CPU, which a test may change.

    Args:
        base: a folder of `GOLDEN` with a checkpoint: "llava15_vscan" or "llavanext_vscan".
        tower24: with the tower of 24 blocks and 16 heads in place of the checkpoint's own.
    """
    model = load_model(GOLDEN / base / "checkpoint", device="cpu", dtype=torch.float32)
    if tower24:
        tower = CLIPVisionModel.from_pretrained(GOLDEN / "rivals" / "tower24", dtype=torch.float32).eval()
        model.model.vision_tower = CLIPVisionTower(tower, model.config.mm_vision_select_layer)
    model.generation_config.eos_token_id = None  # as recorded: 16 tokens always come out
    return model


@lru_cache(maxsize=4)
def model_of(base: str, tower24: bool = False):
    """The same, made once: for tests that leave it as it is."""
    return fresh_model(base, tower24)


@lru_cache(maxsize=4)
def inputs_of(base: str) -> dict[str, Tensor]:
    """`input_ids` [1, 33] with -200 for the picture, and pictures `pixel_u8_{i}`, of a folder of `GOLDEN`."""
    return load_file(GOLDEN / base / "inputs.safetensors")


def pixels_of(base: str, image: int) -> Tensor:
    """What the tower was given for a recorded picture: [1, 3, H, W], on NeXT [crops, 3, H, W]."""
    pixels = normalised(inputs_of(base)[f"pixel_u8_{image}"])
    return pixels[0] if pixels.ndim == 5 else pixels


@dataclass
class Run:
    """What one prompt and its greedy answer did; steps begin with the prompt's own pass.

    Args:
        tokens: new ones.
        logits: [steps, vocabulary].
        inputs: [step][layer], what every layer was given, [1, S, D].
        output: [step], what the last layer gave, before the norm.
        cached: [step][layer], tokens that the layer's cache held before the step.
        rotary: [step][layer], (cos, sin) that the layer was given.
        kept: [stage], columns of the full prompt that went on, in order; stage 0 is what layer 0 saw.
        cache: the KV cache afterwards.
        reduction: the handle of `vscan.reduce`.
        frequencies: of the rotary embedding.
    """

    tokens: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    inputs: list[list[Tensor]] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)
    cached: list[list[int]] = field(default_factory=list)
    rotary: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    cache: Any = None
    reduction: Any = None
    frequencies: Tensor | None = None

    @property
    def embeds(self) -> Tensor:
        """What entered layer 0: [S, D]."""
        return self.inputs[0][0][0]

    @property
    def last_hidden(self) -> Tensor:
        """The prompt's last position before every layer and behind the last one, before the norm: [layers + 1, D]."""
        return torch.stack([hidden[0, -1] for hidden in self.inputs[0]] + [self.output[0][0, -1]])

    @property
    def lengths(self) -> list[int]:
        """Tokens of the prompt that every layer's cache holds."""
        num_after = len(self.tokens) - 1
        return [self.cache.get_seq_length(layer) - num_after for layer in range(len(self.inputs[0]))]

    def positions(self, step: int, layer: int) -> list[int]:
        """The positions whose rotary embedding a layer was given in a step."""
        cos, sin = self.rotary[step][layer]
        angles = torch.arange(4096).unsqueeze(1) * self.frequencies
        table = torch.cat((angles.cos(), angles.sin()), dim=1)
        half = cos.shape[-1] // 2
        seen = torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=1)
        distances = torch.cdist(seen, table, p=1)
        assert distances.amin(dim=1).max() < 1e-3  # neighbours are further apart by far
        return distances.argmin(dim=1).tolist()

    def visual(self, stage: int, start: int = SPAN, num: int = NUM_TOKENS) -> list[int]:
        """Visual tokens that a stage left, as indices into the picture's `num`, whose first stood in column `start`."""
        return [column - start for column in self.kept[stage] if start <= column < start + num]

    def relative(self, stage: int, start: int = SPAN, num: int = NUM_TOKENS) -> list[int]:
        """The same as indices into those that arrived at the stage."""
        arrived = {token: index for index, token in enumerate(self.visual(stage - 1, start, num))}
        return [arrived[token] for token in self.visual(stage, start, num)]


def run(model, ids: Tensor, pixels: Tensor, sizes: list | None = None, num_new: int = 16, **reduction) -> Run:
    """Greedy tokens for one prompt under a reduction, with all that `Run` holds.

    Args:
        model: of `model_of`.
        ids: long [1, L] with -200 for the picture.
        pixels: of `pixels_of`.
        sizes: [(width, height)] of the picture before it was cut, on NeXT.
        reduction: keywords of `vscan.reduce`.
    """
    text = model.model
    found = Run(frequencies=text.rotary_emb.inv_freq)

    def before_layer(layer, args, kwargs):
        index = layer.self_attn.layer_idx
        if index == 0:
            for steps in (found.inputs, found.cached, found.rotary):
                steps.append([])
            found.output.append(None)
        found.inputs[-1].append(args[0])
        found.cached[-1].append(int(kwargs[CACHE].get_seq_length(index)))
        found.rotary[-1].append(kwargs["position_embeddings"])

    def before_norm(norm, args):
        found.output[-1] = args[0]  # a method may have asked it before

    handles = [layer.register_forward_pre_hook(before_layer, with_kwargs=True) for layer in text.layers]
    handles.append(text.norm.register_forward_pre_hook(before_norm))
    options = {"max_new_tokens": num_new, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    images = {"images": pixels} if sizes is None else {"images": [pixels], "image_sizes": sizes}
    try:
        with vscan.reduce(model, **reduction) as found.reduction:
            output = model.generate(ids, **images, **options)
            stages = 1 + len(found.reduction.config.layers)
            found.kept = [found.reduction.kept(stage)[0].tolist() for stage in range(stages)]
    finally:
        for handle in handles:
            handle.remove()
    found.tokens, found.logits = output.sequences[0, -num_new:].tolist(), torch.cat(output.logits)
    found.cache = cache_of(output)
    return found


def same(got: Tensor, expected: Tensor, atol: float = 2e-4) -> None:
    """Equal to an absolute tolerance; 2e-4 is what was recorded for logits and hidden states."""
    torch.testing.assert_close(got.float(), expected.float(), atol=atol, rtol=0)


@contextmanager
def stored_selection(method: str, slots: list[list[int]]) -> Iterator[None]:
    """While this lasts, a method keeps in the decoder what was recorded: for cases that rounding decides.

    Args:
        method: a name in `vscan.METHODS`.
        slots: for every stage, the visual tokens kept of those that arrive, ascending.
    """

    class Stored(method_class(method)):
        def prune(self, stage: Stage) -> Kept:
            number = stage.memory["stages"] = stage.memory.get("stages", 0) + 1
            return Kept(stage.visual[0].nonzero()[slots[number - 1], 0].unsqueeze(0))

    with patch.dict(METHODS, {method: Stored}):
        yield


def stage_of(
    text_model,
    layer: int,
    hidden: Tensor,
    visual: Tensor,
    num: list[int],
    valid: Tensor | None = None,
    before: Tensor | None = None,
) -> Stage:
    """A stage on given hidden states, positions 0, 1, 2, ..., for functions that need no whole prompt.

    Args:
        text_model: whose layers rank.
        layer: the layer about to run.
        hidden: [B, S, D].
        visual: bool [B, S].
        num: visual tokens to keep, one int an item.
        valid: bool [B, S], columns that are no padding, which is on the right; None where there is none.
        before: [B, S, D], the input of the layer before.
    """
    filled = torch.ones_like(visual) if valid is None else valid
    text = filled & ~visual
    positions = torch.arange(hidden.shape[1]).unsqueeze(0)
    with torch.no_grad():
        rotary = text_model.rotary_emb(hidden, positions)
    return Stage(
        layer=layer,
        hidden=hidden,
        visual=visual,
        text=text,
        num=num,
        arriving=visual.sum(dim=1).tolist(),
        entry=Entry(hidden, visual, text, int(text.sum(dim=1).max())),
        memory={},
        positions=positions,
        rotary=rotary,
        final_norm=text_model.norm,
        last=filled.sum(dim=1) - 1,
        allowed=valid,
        layers=list(text_model.layers[max(layer - 1, 0) : layer + 1]),
        inputs=[hidden if before is None else before, hidden],
    )


@contextmanager
def stored_tokens(method: str, slots: Tensor) -> Iterator[None]:
    """While this lasts, a method keeps these tokens of every view after the vision encoder, long [V, T]: for cases that
    rounding decides, or a bug."""

    class Stored(method_class(method)):
        def encode(self, views: Views, num: int) -> Kept:
            return Kept(slots.long().sort(dim=1).values)

    with patch.dict(METHODS, {method: Stored}):
        yield


def check_kept(case: dict, recorded: dict[str, Tensor], method: str, num: int, **reduction) -> Run:
    """A picture of `llava15_vscan` in a whole model: tokens kept, embeddings, logits and the answer.

    Args:
        case: of an index file, with `image` and `strict`.
        recorded: with `selected`, `inputs_embeds`, `prefill_logits_last` and `generated`.
        reduction: more keywords of `vscan.reduce`.
    """
    base = "llava15_vscan"
    ids, selected = recorded["input_ids"].long(), recorded["selected"].long().view(1, -1)
    start = ids[0].tolist().index(-200)
    with nullcontext() if case["strict"] else stored_tokens(method, selected):
        found = run(model_of(base), ids, pixels_of(base, case["image"]), method=method, visual_tokens=num, **reduction)
    assert found.visual(0, start) == selected[0].sort().values.tolist()
    same(found.embeds, recorded["inputs_embeds"][0], 2e-5)
    check_answer(found, recorded)
    assert found.positions(0, 0) == list(range(len(found.embeds)))
    return found


def check_answer(found: Run, recorded: dict[str, Tensor]) -> None:
    """Logits of the prompt, and what is answered."""
    same(found.logits[0], recorded["prefill_logits_last"])
    assert found.tokens == recorded["generated"].tolist()
    assert found.lengths == [len(found.embeds)] * len(found.lengths)


@lru_cache(maxsize=4)
def crops_of(image: int, needs: Needs = NOTHING, tower24: bool = False) -> tuple[Views, Tensor]:
    """What a method is given of a recorded picture of LLaVA-NeXT, crop by crop; and the projected tokens [V, N, D]."""
    model, pixels = model_of(NEXT, tower24), pixels_of(NEXT, image)
    tower = model.model.vision_tower
    with torch.no_grad():
        seen = run_tower(tower.vision_tower, pixels, tower.select_layer, needs)
        projected = model.model.mm_projector(seen.hidden[:, 1:])
    clip = tower.vision_tower
    views = Views(
        pixels=pixels,
        features=seen.hidden[:, 1:],
        rows=seen.rows,
        grid=grid_of(clip),
        project=model.model.mm_projector,
        cls=seen.hidden[:, 0],
        keys=seen.keys,
        queries=seen.queries,
        num_heads=clip.config.num_attention_heads,
    )
    return views, projected


def stitched(kept: list[list[int]], columns: int, side: int = 24) -> list[tuple[int, int]]:
    """(crop, token) in the order in which leaders feed a picture: the whole one, then the tiles' grid, row by row.

    Args:
        kept: tokens of every crop.
        columns: of tiles.
    """

    def place(crop: int, token: int) -> tuple:
        (row, column), (high, wide) = divmod(crop - 1, columns), divmod(token, side)
        return row * side + high, column * side + wide

    tiles = [(crop, token) for crop, tokens in enumerate(kept) if crop for token in tokens]
    return [(0, token) for token in sorted(kept[0])] + sorted(tiles, key=lambda pair: place(*pair))


def check_crops(case: dict, recorded: dict[str, Tensor], kept: list[list[int]], projected: Tensor) -> None:
    """What is kept of every crop, and that a prompt with these tokens in the published layout, without newlines, is the
    recorded one, by its embeddings."""
    assert [sorted(tokens) for tokens in kept] == [row.sort().values.tolist() for row in recorded["selected"]]
    columns = model_of(NEXT).tile_columns(len(kept) - 1, tuple(case["image_size"]))
    order = stitched(kept, columns)
    tokens = torch.stack([projected[crop, token] for crop, token in order])
    same(tokens, recorded["inputs_embeds"][0, SPAN : SPAN + len(order)], 2e-5)


@lru_cache(maxsize=1)
def qwen_model():
    """The recorded Qwen2.5-VL, which tests leave as it is."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(GOLDEN / QWEN / "checkpoint").eval()
    model.generation_config.eos_token_id = None
    return model


def check_qwen(case: dict, recorded: dict[str, Tensor], method: str, num: int, **reduction) -> None:
    """A picture of `qwen25vl_vscan` in a whole model: tokens kept, their positions, logits and the answer."""
    stored, image, model = inputs_of(QWEN), case["image"], qwen_model()
    ids, text = stored[f"input_ids_{image}"], model.model.language_model
    visual = ids[0] == QWEN_IMAGE
    start, num_visual = int(visual.int().argmax()), int(visual.sum())
    call = {
        "attention_mask": stored[f"attention_mask_{image}"],
        "pixel_values": normalised_patches(stored[f"pixel_u8_{image}"]),
        "image_grid_thw": stored[f"image_grid_thw_{image}"],
        "mm_token_type_ids": visual.int().unsqueeze(0),
    }
    seen = []
    handle = text.rotary_emb.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    options = {"max_new_tokens": 16, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with (
        nullcontext() if case["strict"] else stored_tokens(method, recorded["selected"].view(1, -1)),
        vscan.reduce(model, method, num, **reduction) as reduced,
    ):
        output = model.generate(ids, **call, **options)
        kept = reduced.kept(0)[0].tolist()
    handle.remove()
    found = [column - start for column in kept if start <= column < start + num_visual]
    assert found == recorded["selected"].sort().values.tolist()
    assert seen[0].tolist() == recorded["position_ids"].tolist()
    same(output.logits[0][0], recorded["prefill_logits_last"])
    assert output.sequences[0, -16:].tolist() == recorded["generated"].tolist()


def said(content: dict, method: str, key: str) -> dict:
    """What an index file says beside its cases, such as its texts; another folder's need not repeat it."""
    first = json.loads((GOLDEN / "rivals" / method / "cases.json").read_text())
    return {**first.get(key, {}), **content.get(key, {})}


@contextmanager
def recorded_questions(method: str, questions: list[Question]) -> Iterator[None]:
    """While this lasts, a method reads these of every view, whatever the text: for what a bug made of it."""

    class Read(method_class(method)):
        def prepare(self, model, processor):
            see = super().prepare(model, processor)([""])[0].see
            return lambda texts: [question._replace(see=see) for question in questions]

    with patch.dict(METHODS, {method: Read}):
        yield


def qwen_question(recorded: dict[str, Tensor], image: int) -> tuple[Question, Tensor]:
    """A recorded text of Qwen2.5-VL as one pooled vector and its rows; and the merged tokens, [1, N, D]."""
    rows = load_file(GOLDEN / QWEN / "checkpoint" / "model.safetensors")["model.embed_tokens.weight"]
    words = rows[recorded["text_ids"][0].long()]
    tokens = load_file(GOLDEN / QWEN / f"vision_img{image}.safetensors")["image_embeds"]
    return Question(words.mean(dim=0, keepdim=True), [words]), tokens.unsqueeze(0)
