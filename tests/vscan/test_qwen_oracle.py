"""A reduced Qwen2.5-VL or Qwen2-VL against an oracle that removes nothing: the dense decoder on the full prompt, one
row at a time, in which a dropped token stays where it is and is only hidden from every query.

Both stages are selected here from scratch (whole attention maps, walks over tokens), so that the tests know nothing of
how `vscan` scores, selects, merges, shortens, masks or caches.
"""

from collections import defaultdict
from itertools import product
from math import ceil

import pytest
import torch
from helpers import close
from pairwise import cover, pairwise
from qwen_helpers import IMAGE_TOKEN, VIDEO_TOKEN, image, inputs_of, tiny_qwen, video
from torch.nn.functional import cosine_similarity
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

import vscan
from vscan.compat import cache_of

NUM_LAYERS, NUM_ANSWER, GLOBAL = 4, 4, 3
LOCAL = {Qwen2_5_VLForConditionalGeneration: 1, Qwen2VLForConditionalGeneration: 0}
ROWS = {
    "one": [[1, image(5, 6), 5, 6, 7]],
    "image_first": [[image(4, 8), 5, 6, 7]],
    "several_sizes": [[1, image(9, 7), 4, image(4, 4), 9, 9, image(3, 5), 6]],
    "small": [[1, image(1, 1), 4, image(2, 2), 5, image(1, 7)]],
    "unequal": [[1, image(5, 6), 5], [1, 4, image(4, 9), 6, 7], [1, 3, image(8, 8), 4, image(2, 5), 8]],
    "mixed": [[1, image(5, 6), 5, 6], [1, 7, 8, 9], [1, image(6, 6), 3]],
    "video": [[1, video(3, 4, 6), 5, 6]],
    "images_and_videos": [[1, video(2, 5, 4), 5, image(6, 5), 6], [1, image(7, 4), 3], [4, 5, video(3, 4, 4), 6]],
}
STAGES = {
    "encoder": (0.3, {}),
    "encoder_and_middle": (0.4, {2: 0.5}),
    "middle": (None, {2: 5}),
    "counts": (6, {1: 4, 3: 2}),
    "least": (0.01, {2: 0.01}),
    "entry": (0.5, {0: 0.5, 3: 0.3}),
}


def count(present: int, budget, views: int) -> int:
    if budget is None or present == 0:
        return present
    return min(present, views * budget) if isinstance(budget, int) else max(1, int(present * budget))


def turned(states, cos, sin):
    half = states.shape[-1] // 2
    return states * cos + torch.cat((-states[..., half:], states[..., :half]), dim=-1) * sin


def window_places(side: int) -> list[int]:
    """The window of every row or column: 4 wide, what is left over joins the last one."""
    return [min(place // 4, max(1, side // 4) - 1) for place in range(side)]


def raster_order(steps: int, height: int, width: int) -> list[int]:
    """Where the tower's windows of 4 x 4 put each token: the tokens in its order."""
    order = []
    for step in range(steps):
        for top in range(0, height, 4):
            for left in range(0, width, 4):
                for row in range(top, min(top + 4, height)):
                    order += [(step * height + row) * width + c for c in range(left, min(left + 4, width))]
    return order


@torch.no_grad()
def scores_of(tower, pixels, grid: tuple[int, int, int], blocks: tuple[int, int]) -> dict:
    """What each token of a picture receives in the two blocks, from whole attention maps: {block: [tokens]}."""
    seen, hooks = {}, []
    for block in blocks:

        def keep(module, args, kwargs, block=block):
            seen[block] = args[0], kwargs["position_embeddings"]

        hooks.append(tower.blocks[block].register_forward_pre_hook(keep, with_kwargs=True))
    steps, height, width = grid
    output = tower(pixels, torch.tensor([[steps, 2 * height, 2 * width]]))
    for hook in hooks:
        hook.remove()
    scores = {}
    for block, (hidden, (cos, sin)) in seen.items():
        attention = tower.blocks[block].attn
        query, key, _ = (
            attention.qkv(tower.blocks[block].norm1(hidden)).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
        )
        query, key = (turned(part, cos[:, None], sin[:, None]).transpose(0, 1) for part in (query, key))
        received = []
        for q, k in zip(query.chunk(steps, dim=1), key.chunk(steps, dim=1), strict=True):
            received.append((q @ k.transpose(1, 2) * attention.head_dim**-0.5).softmax(-1).sum(0).mean(0))
        of_tokens = torch.cat(received).view(-1, 4).mean(1)
        scores[block] = torch.zeros(len(of_tokens))
        order = raster_order(*grid) if hasattr(tower, "window_size") else range(len(of_tokens))
        scores[block][list(order)] = of_tokens
    return scores, output.pooler_output


class Oracle:
    """What the decoder makes of one prompt when hidden tokens stay in place."""

    def __init__(self, cls: type, row: list, stages: tuple):
        self.model, (self.visual_tokens, self.layers) = tiny_qwen(cls), stages
        self.local = LOCAL[cls]
        self.inputs = inputs_of([row])
        self.ids = self.inputs["input_ids"][0].tolist()
        self.slots = [column for column, token in enumerate(self.ids) if token in (IMAGE_TOKEN, VIDEO_TOKEN)]
        self.values, self.dropped, self.num_views = {}, set(), 0
        first = 0
        for place in (part for part in row if isinstance(part, tuple)):
            steps, size = place[1], place[2] * place[3]
            pixels = inputs_of([[place]])["pixel_values" if place[0] == IMAGE_TOKEN else "pixel_values_videos"]
            scores, values = scores_of(self.model.model.visual, pixels, place[1:], (self.local, GLOBAL))
            for step in range(steps):
                of_view = slice(step * size, (step + 1) * size)
                self.view(
                    {block: score[of_view].tolist() for block, score in scores.items()},
                    values[of_view],
                    place[2:],
                    self.slots[first : first + size],
                )
                first += size
            self.num_views += steps
        self.run([])

    def view(self, scores: dict, values, grid: tuple[int, int], slots: list[int]):
        num = count(len(slots), self.visual_tokens, 1)
        stays = set(range(len(slots))) if num == len(slots) else self.select(scores, grid, num)
        groups = {token: [values[token]] for token in sorted(stays)}
        for token in set(range(len(slots))) - stays:
            near = cosine_similarity(values[token].double()[None], values[sorted(stays)].double(), dim=-1)
            groups[sorted(stays)[int(near.argmax())]].append(values[token])
        for token, column in enumerate(slots):
            if token in stays:
                self.values[column] = torch.stack(groups[token]).double().mean(0).float()
            else:
                self.dropped.add(column)

    def select(self, scores: dict, grid: tuple[int, int], num: int) -> set:
        height, width = grid
        rows, columns = window_places(height), window_places(width)
        num_windows = (rows[-1] + 1) * (columns[-1] + 1)
        num_local, used, stays = num // 2, defaultdict(int), []
        for token in sorted(range(height * width), key=lambda token: -scores[self.local][token]):
            window = rows[token // width], columns[token % width]
            if len(stays) < num_local and used[window] < ceil(num_local / num_windows):
                used[window] += 1
                stays.append(token)
        rest = sorted(set(range(height * width)) - set(stays), key=lambda token: -scores[GLOBAL][token])
        return {*stays, *rest[: num - len(stays)]}

    @torch.no_grad()
    def run(self, answer: list[int]):
        """Logits [L + answer, V]; sets `kept`, for each stage the columns that are seen from there on."""
        text, last = self.model.model.language_model, len(self.ids) - 1
        given = {name: value for name, value in self.inputs.items() if not name.startswith("pixel_values")}
        positions = torch.arange(len(self.ids)).expand(3, 1, -1)
        if self.slots:
            positions, _ = self.model.model.get_rope_index(**given)
        following = positions.max() + 1 + torch.arange(len(answer))
        positions = torch.cat((positions, following.expand(3, 1, -1)), dim=2)
        hidden = text.embed_tokens(torch.tensor([self.ids + answer]))
        for column in self.slots:
            hidden[0, column] = self.values.get(column, torch.tensor(3.0))  # what a dropped token holds must not matter
        rotary = text.rotary_emb(hidden, position_ids=positions)
        seen = torch.tensor([column not in self.dropped for column in range(hidden.shape[1])])
        self.kept = [seen[: last + 1].nonzero().flatten().tolist()]
        for index, layer in enumerate(text.layers):
            if index in self.layers:
                present = [column for column in self.slots if seen[column]]
                num = count(len(present), self.layers[index], self.num_views)
                row = self.row_of_last(layer, hidden, seen, last)
                for column in sorted(present, key=lambda column: -row[column])[num:]:
                    seen[column] = False
                self.kept.append(seen[: last + 1].nonzero().flatten().tolist())
            causal = torch.ones(len(seen), len(seen)).tril().bool() & seen
            mask = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)[None, None]
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return self.model.lm_head(text.norm(hidden))[0]

    def row_of_last(self, layer, hidden, seen, last: int) -> list[float]:
        """What the last token of the prompt attends to, positions left out, mean over heads."""
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)[0]
        query, key = (p(normed).view(len(normed), -1, attention.head_dim) for p in (attention.q_proj, attention.k_proj))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = torch.einsum("hd,khd->hk", query[last], key) * attention.head_dim**-0.5
        seen = seen & (torch.arange(len(seen)) <= last)
        return logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(0).tolist()


def generate(model, inputs, **kwargs):
    options = {"max_new_tokens": NUM_ANSWER, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **options, **kwargs)


def columns_of(kept) -> list[list[int]]:
    """`Reduction.kept` as one list a row, without fillers."""
    return [row[row >= 0].tolist() for row in kept]


# Both kinds of model on all rows and at all stages, which meet each other in test_qwen.py.
CASES = [(cls, *case) for cls in LOCAL for case in cover(ROWS, STAGES, together=1)]


@pytest.mark.parametrize(
    ("cls", "rows", "stages"),
    [pytest.param(*case, marks=() if case in CASES else pytest.mark.slow) for case in product(LOCAL, ROWS, STAGES)],
)
def test_the_oracle_sees_the_same_tokens_and_gives_the_same_logits(cls, rows, stages):
    model, inputs, (ratio, layers) = tiny_qwen(cls), inputs_of(ROWS[rows]), STAGES[stages]
    oracles = [Oracle(cls, row, STAGES[stages]) for row in ROWS[rows]]
    with vscan.reduce(model, visual_tokens=ratio, layers=layers) as reduction, torch.no_grad():
        logits = model(**inputs).logits
        output = generate(model, inputs)
    shift = [int(mask.argmax()) for mask in inputs["attention_mask"]]
    for stage in range(1 + len(layers)):
        expected = [[column + by for column in oracle.kept[stage]] for oracle, by in zip(oracles, shift, strict=True)]
        assert columns_of(reduction.kept(stage)) == expected, f"stage {stage}"
    answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    for row, (oracle, answer) in enumerate(zip(oracles, answers, strict=True)):
        valid = reduction.kept()[row] >= 0
        expected = oracle.run(answer[:-1])
        close(logits[row][valid], expected[oracle.kept[-1]])
        steps = torch.stack([step[row] for step in output.logits])
        close(steps, expected[len(oracle.ids) - 1 :])
    lengths, stage = [], 0
    for layer in range(NUM_LAYERS):
        stage += layer in layers
        lengths.append(max(len(oracle.kept[stage]) for oracle in oracles) + NUM_ANSWER - 1)
    assert [cache_of(output).get_seq_length(layer) for layer in range(NUM_LAYERS)] == lengths


@pytest.mark.parametrize(
    ("cls", "rows", "stages"), pairwise(LOCAL, ["unequal", "mixed", "images_and_videos"], STAGES, together=1)
)
def test_padding_on_the_right_changes_nothing(cls, rows, stages):
    model, (ratio, layers) = tiny_qwen(cls), STAGES[stages]
    with vscan.reduce(model, visual_tokens=ratio, layers=layers) as reduction, torch.no_grad():
        logits = model(**inputs_of(ROWS[rows], side="right")).logits
    for row, parts in enumerate(ROWS[rows]):
        oracle = Oracle(cls, parts, STAGES[stages])
        assert columns_of(reduction.kept())[row] == oracle.kept[-1]
        expected = oracle.run([])[oracle.kept[-1]]
        close(logits[row][reduction.kept()[row] >= 0], expected)
