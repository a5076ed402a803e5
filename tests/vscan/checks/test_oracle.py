"""A reduced model against an oracle that removes nothing: the dense decoder on the full prompt, one row at a time, in
which a dropped token stays where it is and is only hidden from every query.

Both stages are selected here from scratch (loops over windows and tokens, whole attention maps), so that the tests know
nothing of how `vscan` selects, merges, shortens, renumbers, masks or caches.
"""

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from helpers import IMAGE_TOKEN, close, pictures, prompt, tiny_llava
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch.nn.functional import cosine_similarity

import vscan
from vscan.compat import cache_of

NUM_LAYERS, SIDE, NUM_TOKENS = 4, 8, 64
FIELDS = {"local_layer": 1, "global_layer": -2}  # of the four layers of the tiny tower
NUM_ANSWER = 4
GAP = 1e-6  # where two scores (relative) or two cosines are closer than this at a cut, rounding decides who stays

ROWS = {
    "one": [[1, "image", 5, 6, 7]],
    "text_first": [[1, 8, 4, "image", 6]],
    "image_first": [["image", 5, 6, 7]],
    "two_images": [[1, "image", 4, 9, "image", 5, 6]],
    "unequal": [[1, "image", 5], [1, 4, "image", 6, 7, 8, 9], [1, 3, "image", 4, 4]],
    "mixed": [[1, "image", 5, 6], [1, 7, 8, 9], [1, "image", 3, "image", 4]],
    # As long as each other, hence without padding before anything is dropped.
    "level": [[1, "image", 3, "image", 4], [1, "image", *range(3, 69)], [1, *range(3, 98), *range(3, 38)]],
}
STAGES = {
    "encoder": (20, {}),
    "encoder_and_middle": (20, {2: 7}),
    "middle": (None, {2: 11}),
    "first_and_last": (24, {0: 9, 3: 3}),
    "three": (0.5, {1: 0.6, 2: 6, 3: 1}),
    "entry_only": (None, {0: 12}),
    "none_left": (16, {1: 0}),
    "as_many_as_there": (30, {1: 30, 3: 0.3}),
}


@lru_cache(maxsize=8)
def model_with(kv_heads: int = 2, num_layers: int = NUM_LAYERS, side: int = SIDE):
    return tiny_llava(num_layers=num_layers, vision_layers=4, side=side, kv_heads=kv_heads)


@dataclass
class Case:
    """One batch and one reduction of it."""

    rows: list
    visual_tokens: int | float | None
    layers: dict
    positions: str = "auto"
    kv_heads: int = 2
    padding: str = "left"
    side: int = SIDE
    num_layers: int = NUM_LAYERS
    seed: int = 0

    @property
    def model(self):
        return model_with(self.kv_heads, self.num_layers, self.side)

    @property
    def inputs(self) -> dict:
        ids, mask = prompt(self.rows, self.side**2, side=self.padding)
        num_images = sum(row.count("image") for row in self.rows)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(self.model, num_images, self.seed)}

    def reduce(self):
        return vscan.reduce(self.model, "vscan", self.visual_tokens, self.layers, self.positions, **FIELDS)

    def oracles(self) -> list["Oracle"]:
        """One for each row, which knows neither the other rows nor the padding."""
        inputs, oracles, first = self.inputs, [], 0
        for row, ids, mask in zip(self.rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
            pixels = inputs["pixel_values"][first : first + row.count("image")]
            first += row.count("image")
            oracles.append(Oracle(self, ids[mask.bool()].tolist(), pixels))
        return oracles


def split(states, head_dim: int):
    """[L, H * d] -> [H, L, d]."""
    return states.view(states.shape[0], -1, head_dim).transpose(0, 1)


def rotated(states, cos, sin):
    half = states.shape[-1] // 2
    return states * cos + torch.cat((-states[..., half:], states[..., :half]), dim=-1) * sin


def attention_map(query, key, scale: float, mask=0.0):
    """softmax(q k^T * scale + mask) of [H, L, d] queries and [Hk, L, d] keys, mean over heads: [L, L]."""
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    return (query @ key.transpose(1, 2) * scale + mask).softmax(dim=-1).mean(dim=0)


class Oracle:
    """What the decoder makes of one prompt when hidden tokens stay in place.

    Args:
        case: the reduction.
        ids: the prompt, without padding.
        pixels: its pictures.
    """

    def __init__(self, case: Case, ids: list[int], pixels):
        self.case, self.ids, self.model = case, ids, case.model
        self.gap = 1.0  # the smallest distance at which something was decided
        self.slots = [column for column, token in enumerate(ids) if token == IMAGE_TOKEN]
        self.num_views = len(pixels)
        self.values, self.dropped = {}, set()
        size = case.side**2
        for view, pixel in enumerate(pixels):
            values, stays = self.encode(pixel)
            for token in range(size):
                column = self.slots[view * size + token]
                self.values[column] = values[token]
                if token not in stays:
                    self.dropped.add(column)
        self.run([])

    def best(self, scores: dict[int, float], num: int) -> list[int]:
        """The `num` keys of the largest scores, the first ones on ties."""
        order = sorted(scores, key=lambda key: (-scores[key], key))
        if 0 < num < len(order):
            self.gap = min(self.gap, 1 - scores[order[num]] / scores[order[num - 1]])
        return order[:num]

    def count(self, present: int, budget, views: int) -> int:
        if budget is None or present == 0:
            return present
        return min(present, views * budget) if isinstance(budget, int) else max(1, int(present * budget))

    @torch.no_grad()
    def encode(self, pixel):
        """One picture: a value for every token, and the set of those that stay."""
        base, side = self.model.model, self.case.side
        states = base.vision_tower(pixel[None], output_hidden_states=True).hidden_states
        values = base.multi_modal_projector(states[-2][:, 1:])[0]
        num = self.count(side**2, self.case.visual_tokens, 1)
        if num == side**2:
            return values, set(range(num))

        def scores(block):
            layer = base.vision_tower.encoder.layers[block]
            attention, hidden = layer.self_attn, layer.layer_norm1(states[block])[0]
            query, key = (split(part(hidden), attention.head_dim) for part in (attention.q_proj, attention.k_proj))
            return dict(enumerate(attention_map(query, key, attention.head_dim**-0.5)[0, 1:].tolist()))

        window = 6 if side % 6 == 0 else 4
        number = side // window
        windows = {}
        for token in range(side**2):
            place = min(token // side // window, number - 1), min(token % side // window, number - 1)
            windows.setdefault(place, []).append(token)
        local, deep = scores(1), scores(2)
        stays = set()
        for tokens in windows.values():
            stays.update(self.best({token: local[token] for token in tokens}, num // 2 // len(windows)))
        stays.update(self.best({token: deep[token] for token in deep if token not in stays}, num - len(stays)))
        order = sorted(stays)
        groups = {token: [values[token]] for token in order}
        for token in set(range(side**2)) - stays:
            near = cosine_similarity(values[token].double()[None], values[order].double(), dim=-1)
            if len(order) > 1:
                first, second = near.topk(2).values.tolist()
                self.gap = min(self.gap, first - second)
            groups[order[int(near.argmax())]].append(values[token])
        merged = torch.full_like(values, 3.0)  # what a dropped token holds must not matter
        for token, members in groups.items():
            merged[token] = torch.stack(members).double().mean(0).float()
        return merged, stays

    @torch.no_grad()
    def run(self, answer: list[int]):
        """Logits [L + answer, V]; sets `kept`, for each stage the columns that are seen from there on."""
        text = self.model.model.language_model
        ids, last = self.ids + answer, len(self.ids) - 1
        hidden = text.embed_tokens(torch.tensor([ids]))
        for column, value in self.values.items():
            hidden[0, column] = value
        seen = torch.tensor([column not in self.dropped for column in range(len(ids))])
        self.kept = [seen[: last + 1].nonzero().flatten().tolist()]

        def mask_and_rotary():
            positions = seen.cumsum(0) - 1 if self.case.positions != "original" else torch.arange(len(ids))
            causal = torch.ones(len(ids), len(ids)).tril().bool() & seen
            hidden_keys = torch.zeros(causal.shape).masked_fill(~causal, torch.finfo(torch.float32).min)
            return hidden_keys[None, None], text.rotary_emb(hidden, position_ids=positions.clamp(min=0)[None])

        mask, rotary = mask_and_rotary()
        for index, layer in enumerate(text.layers):
            if index in self.case.layers:
                present = [column for column in self.slots if seen[column]]
                num = self.count(len(present), self.case.layers[index], self.num_views)
                if num < len(present):
                    attention, normed = layer.self_attn, layer.input_layernorm(hidden)[0]
                    query, key = (
                        rotated(split(project(normed), attention.head_dim), *(part[0] for part in rotary))
                        for project in (attention.q_proj, attention.k_proj)
                    )
                    row = attention_map(query, key, attention.head_dim**-0.5, mask[0])[last].tolist()
                    stays = self.best({column: row[column] for column in present}, num)
                    seen[[column for column in present if column not in stays]] = False
                self.kept.append(seen[: last + 1].nonzero().flatten().tolist())
                mask, rotary = mask_and_rotary()
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return self.model.lm_head(text.norm(hidden))[0]


def generate(model, inputs, **kwargs):
    return model.generate(
        **inputs,
        max_new_tokens=NUM_ANSWER,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )


def columns_of(kept) -> list[list[int]]:
    """`Reduction.kept` as one list a row, without fillers."""
    return [row[row >= 0].tolist() for row in kept]


def check_forward(case: Case, oracles=None):
    """One plain forward: which columns are kept at every stage, and the logits of all that come out."""
    inputs = case.inputs
    with case.reduce() as reduction, torch.no_grad():
        logits = case.model(**inputs).logits
        if bool(inputs["attention_mask"].all()):
            # Neither a mask nor a cache: here transformers takes positions with gaps for several packed prompts.
            bare = case.model(**{**inputs, "attention_mask": None}, use_cache=False).logits
            close(bare, logits)
    shift = [int(mask.int().argmax()) for mask in inputs["attention_mask"]]  # padding on the left
    oracles = case.oracles() if oracles is None else oracles
    for stage in range(1 + len(case.layers)):
        expected = [[c + by for c in oracle.kept[stage]] for oracle, by in zip(oracles, shift, strict=True)]
        assert columns_of(reduction.kept(stage)) == expected, f"stage {stage}"
    assert torch.equal(reduction.kept(), reduction.kept(len(case.layers)))
    for row, oracle in enumerate(oracles):
        valid = reduction.kept()[row] >= 0
        expected = oracle.run([])[oracle.kept[-1]]
        close(logits[row][valid], expected)
    return oracles


def check_decode(case: Case, oracles):
    """Greedy decoding: the logits of every step, the oracle being given the same answer so far."""
    with case.reduce():
        output = generate(case.model, case.inputs)
    answers = output.sequences[:, case.inputs["input_ids"].shape[1] :].tolist()
    logits = torch.stack(output.logits, dim=1)  # B NUM_ANSWER V
    lengths = [cache_of(output).get_seq_length(layer) for layer in range(case.num_layers)]
    expected, stage = [], 0
    for layer in range(case.num_layers):
        stage += layer in case.layers
        expected.append(max(len(oracle.kept[stage]) for oracle in oracles) + NUM_ANSWER - 1)
    assert lengths == expected
    for row, (oracle, answer) in enumerate(zip(oracles, answers, strict=True)):
        expected = oracle.run(answer[:-1])[len(oracle.ids) - 1 :]
        close(logits[row], expected)


# Any rows and any stages together are what hypothesis draws below.
@pytest.mark.parametrize(
    ("rows", "stages", "decoder"),
    pairwise(ROWS, STAGES, [("compact", 2), ("original", 2), ("compact", 4)], together=1),
)
def test_the_oracle_sees_the_same_tokens_and_gives_the_same_logits(rows, stages, decoder):
    case = Case(ROWS[rows], *STAGES[stages], *decoder)
    check_decode(case, check_forward(case))


# tests/contracts/test_family.py says of every adapter what this and the next two say of batches.
@pytest.mark.parametrize(
    ("rows", "stages", "positions"),
    pairwise(["unequal", "mixed", "level"], STAGES, ["compact", "original"], together=1),
)
def test_padding_on_the_right_changes_nothing(rows, stages, positions):
    check_forward(Case(ROWS[rows], *STAGES[stages], positions, padding="right"))


@pytest.mark.parametrize("side", [9, 12])
def test_the_oracle_agrees_where_windows_have_a_remainder_and_where_they_are_of_six(side):
    case = Case(ROWS["mixed"], 0.4, {1: 20, 3: 0.5}, side=side)
    check_decode(case, check_forward(case))


def test_auto_positions_are_compact_on_llava():
    case = Case(ROWS["unequal"], 20, {2: 7})
    with torch.no_grad():
        logits = {}
        for case.positions in ("auto", "compact", "original"):
            with case.reduce():
                logits[case.positions] = case.model(**case.inputs).logits
    assert torch.equal(logits["auto"], logits["compact"])
    assert (logits["auto"] - logits["original"])[:, -1].abs().max() > 2e-3


WORDS = st.lists(st.integers(3, 98), min_size=1, max_size=5)
BUDGETS = st.integers(1, NUM_TOKENS) | st.floats(0.02, 1.0)


def not_above(visual_tokens, layers: dict) -> dict:
    """The same budgets, no count above what arrives at its stage, which would be refused."""
    arriving, fitting = count_of(NUM_TOKENS, visual_tokens), {}
    for layer in sorted(layers):
        fitting[layer] = min(layers[layer], arriving) if isinstance(layers[layer], int) else layers[layer]
        arriving = count_of(arriving, fitting[layer])
    return fitting


def count_of(present: int, budget) -> int:
    if budget is None or isinstance(budget, int):
        return present if budget is None else budget
    return min(present, max(1, int(present * budget)))


@st.composite
def cases(draw) -> Case:
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        num_images = draw(st.integers(0, 2))
        row = draw(st.sampled_from([[], [1]]) | WORDS) if num_images else [1, *draw(WORDS)]
        for _ in range(num_images):
            row += ["image", *draw(WORDS)]
        rows.append(row)
    assume(any("image" in row for row in rows))
    num_layers = draw(st.integers(1, 4))
    visual_tokens = draw(st.none() | BUDGETS)
    layers = draw(st.dictionaries(st.integers(0, num_layers - 1), BUDGETS | st.just(0), max_size=3))
    return Case(
        rows,
        visual_tokens,
        not_above(visual_tokens, layers),
        draw(st.sampled_from(["compact", "original"])),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from(["left", "right"])),
        num_layers=num_layers,
        seed=draw(st.integers(0, 10_000)),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_reduction_of_any_batch_agrees_with_the_oracle(case):
    oracles = case.oracles()
    assume(min(oracle.gap for oracle in oracles) > GAP)
    check_forward(case, oracles)
    if case.padding == "left":
        check_decode(case, oracles)


EVERYTHING = [
    (NUM_TOKENS, {}),
    (NUM_TOKENS, {2: NUM_TOKENS}),
    (1.0, {0: 1.0, 3: 1.0}),
    (None, {1: 64}),
    (64, {0: 64, 1: 64, 2: 64}),
]


@pytest.mark.parametrize(
    ("budgets", "rows", "attention"), pairwise(EVERYTHING, ROWS, ["sdpa", "eager"], together=1), ids=str
)
def test_keeping_every_token_is_the_dense_model_bit_for_bit(rows, budgets, attention):
    case = Case(ROWS[rows], *budgets)
    inputs, model = case.inputs, case.model
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            plain, answered = model(**inputs).logits, generate(model, inputs)
            with case.reduce() as reduction:
                assert torch.equal(model(**inputs).logits, plain)
                output = generate(model, inputs)
                assert reduction.last is not None
    finally:
        model.set_attn_implementation("sdpa")
    assert torch.equal(output.sequences, answered.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(answered.logits))


@pytest.mark.parametrize(
    ("rows", "stages", "positions"),
    pairwise(["unequal", "mixed", "level"], STAGES, ["compact", "original"], together=1),
)
def test_a_batch_equals_its_rows_run_alone(rows, stages, positions):
    case = Case(ROWS[rows], *STAGES[stages], positions)
    inputs, length = case.inputs, case.inputs["input_ids"].shape[1]
    with case.reduce() as reduction:
        together = generate(case.model, inputs)
        kept = [columns_of(reduction.kept(stage)) for stage in range(1 + len(case.layers))]
        first = 0
        for row, parts in enumerate(case.rows):
            num_valid, num_images = int(inputs["attention_mask"][row].sum()), parts.count("image")
            alone = {"input_ids": inputs["input_ids"][row : row + 1, length - num_valid :]}
            if num_images:
                alone["pixel_values"] = inputs["pixel_values"][first : first + num_images]
                first += num_images
            output = generate(case.model, alone)
            assert torch.equal(together.sequences[row, length:], output.sequences[0, num_valid:])
            close(torch.stack(together.logits)[:, row], torch.stack(output.logits)[:, 0])
            shift = length - num_valid
            for stage in range(1 + len(case.layers)):
                expected = reduction.kept(stage)[0].tolist() if num_images else range(num_valid)
                assert kept[stage][row] == [column + shift for column in expected]


def anatomy(model) -> dict:
    """Everything that a reduction could leave behind: classes, attributes and hooks of every module, by identity."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    hooks += ("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    found = {}
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        counts = {hook: list(getattr(module, hook)) for hook in hooks}
        found[name] = (type(module), attributes, counts)
    return found


@pytest.mark.parametrize("ending", ["leaves", "raises"])
def test_leaving_the_with_block_gives_the_dense_model_back_bit_for_bit(ending):
    case = Case(ROWS["mixed"], 20, {0: 18, 2: 7})
    model, inputs = case.model, case.inputs
    with torch.no_grad():
        before, plain, answered = anatomy(model), model(**inputs).logits, generate(model, inputs)
        try:
            with vscan.reduce(model, visual_tokens=20, layers={0: 18, 2: 7}, **FIELDS):
                assert anatomy(model) != before
                assert model(**inputs).logits.shape[1] < plain.shape[1]
                generate(model, inputs)
                if ending == "raises":
                    raise KeyError
        except KeyError:
            pass
        assert anatomy(model) == before
        assert torch.equal(model(**inputs).logits, plain)
        output = generate(model, inputs)
    assert torch.equal(output.sequences, answered.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(answered.logits))
    assert cache_of(output).get_seq_length(3) == cache_of(answered).get_seq_length(3)
