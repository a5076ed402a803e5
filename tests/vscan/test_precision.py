"""Half precision: scores and merging stay in fp32, ties go to the earlier token, and no attention map is ever made."""

from copy import deepcopy
from functools import lru_cache

import pytest
import torch
from helpers import pictures, prompt, tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vscan
from vscan.compat import CACHE, cache_of
from vscan.methods import METHODS
from vscan.methods.vscan import VScan
from vscan.select.attention import attention_rows
from vscan.select.merge import merge
from vscan.select.scan import global_scan, local_scan, scan, top

SIDE, NUM_TOKENS, NUM_NEW = 8, 64, 5
TWO_STAGES = {"visual_tokens": 20, "layers": {1: 9, 3: 5}, "local_layer": 1}
ROWS = [[1, "image", 5], [1, 4, "image", 6, 7, 8, 9], [1, 3, "image", 4, "image", 4]]
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # the largest relative error of one rounding


@lru_cache(maxsize=4)
def model_in(dtype: torch.dtype):
    return tiny_llava(num_layers=4, vision_layers=4, side=SIDE).to(dtype)


def inputs_of(model, rows=ROWS, seed: int = 0) -> dict:
    ids, mask = prompt(rows, model.config.vision_config.image_size**2 // 16)
    pixels = pictures(model, sum(row.count("image") for row in rows), seed).to(model.dtype)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def generate(model, inputs, **kwargs):
    return model.generate(
        **inputs, max_new_tokens=NUM_NEW, do_sample=False, return_dict_in_generate=True, output_logits=True, **kwargs
    )


def kept_of(reduction, row: int, pad: int = 0) -> list[list[int]]:
    """What each stage keeps of a row, as columns of the row without its padding."""
    found = [reduction.kept(stage)[row] for stage in range(len(reduction.config.layers) + 1)]
    return [(columns[columns >= 0] - pad).tolist() for columns in found]


@pytest.fixture
def seen(monkeypatch):
    """Every tensor of scores that a method is given, in the encoder and in the decoder."""
    found = []

    class Watched(VScan):
        def encode(self, views, num):
            found.extend(views.rows.values())
            return super().encode(views, num)

        def scores(self, rows):
            scores = super().scores(rows)
            found.extend((rows, scores))
            return scores

    monkeypatch.setitem(METHODS, "watched", Watched)
    return found


class TestScores:
    @HALVES
    def test_methods_are_given_scores_in_fp32_that_were_never_rounded(self, dtype, seen):
        model = model_in(dtype)
        with vscan.reduce(model, "watched", **TWO_STAGES), torch.no_grad():
            model(**inputs_of(model))
        assert len(seen) == 2 + 2 * 2
        for scores in seen:
            assert scores.dtype == torch.float32
            used = scores[(scores > 0) & (scores < 1)]
            assert (used.to(dtype).float() != used).float().mean() > 0.9
        for rows in (seen[2], seen[4]):  # B H S, over the whole causal row
            torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]), atol=1e-5, rtol=0)

    @HALVES
    def test_one_row_of_attention_is_as_exact_as_its_inputs(self, dtype):
        generator = torch.Generator().manual_seed(0)
        query = (40 * torch.randn(2, 4, 1, 64, generator=generator)).to(dtype)
        key = (40 * torch.randn(2, 2, 500, 64, generator=generator)).to(dtype)
        rows = attention_rows(query, key, 0.002)
        logits = query.double() @ key.double().repeat_interleave(2, dim=1).transpose(2, 3) * 0.002
        assert (logits / 0.002).abs().max() > torch.finfo(torch.float16).max / 2
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.double(), logits.softmax(-1), atol=1e-30, rtol=1e-4)

    @HALVES
    def test_selection_and_logits_are_the_same_in_every_run(self, dtype):
        model = model_in(dtype)
        runs = []
        for _ in range(3):
            with vscan.reduce(model, **TWO_STAGES) as reduction:
                output = generate(model, inputs_of(model))
                runs.append(([kept_of(reduction, row) for row in range(3)], output))
        for kept, output in runs[1:]:
            assert kept == runs[0][0]
            assert torch.equal(output.sequences, runs[0][1].sequences)
            assert torch.equal(torch.stack(output.logits), torch.stack(runs[0][1].logits))

    @HALVES
    def test_the_decoder_keeps_the_same_of_a_row_alone_and_in_a_batch_where_scores_lie_apart(self, dtype, seen):
        model, compared = model_in(dtype), 0
        for seed in range(8):
            inputs, first = inputs_of(model, seed=seed), 0
            with vscan.reduce(model, "watched", layers={1: 9}) as reduction, torch.no_grad():
                del seen[:]
                model(**inputs)
                pads = [int((mask == 0).sum()) for mask in inputs["attention_mask"]]
                together = [kept_of(reduction, row, pad) for row, pad in enumerate(pads)]
                scores = [competing(reduction, seen, row) for row in range(len(ROWS))]
                for row, parts in enumerate(ROWS):
                    number = parts.count("image")
                    del seen[:]
                    model(
                        input_ids=inputs["input_ids"][row : row + 1, pads[row] :],
                        pixel_values=inputs["pixel_values"][first : first + number],
                    )
                    first += number
                    if apart(competing(reduction, seen, 0), scores[row], 9 * number, dtype):
                        assert kept_of(reduction, 0) == together[row]
                        compared += 1
        assert compared >= 8

    @HALVES
    def test_the_encoder_keeps_the_same_of_a_view_alone_and_in_a_batch_where_scores_lie_apart(self, dtype, seen):
        model, rows, compared = model_in(dtype), [[1, "image", 5]] * 6, 0
        with (
            vscan.reduce(model, "watched", visual_tokens=9, local_layer=1, global_share=1.0) as reduction,
            torch.no_grad(),
        ):
            for seed in range(3):
                inputs = inputs_of(model, rows, seed)
                del seen[:]
                model(**inputs)
                together, scores = [kept_of(reduction, row) for row in range(6)], seen[1]
                for row in range(6):
                    del seen[:]
                    model(input_ids=inputs["input_ids"][:1], pixel_values=inputs["pixel_values"][row : row + 1])
                    if apart(seen[1][0], scores[row], 9, dtype):
                        assert kept_of(reduction, 0) == together[row]
                        compared += 1
        assert compared >= 12

    @HALVES
    @pytest.mark.parametrize("visual_tokens", [None, NUM_TOKENS])
    def test_keeping_everything_is_the_dense_model_bit_for_bit(self, dtype, visual_tokens):
        model = model_in(dtype)
        inputs = inputs_of(model)
        dense = generate(model, inputs)
        with vscan.reduce(model, visual_tokens=visual_tokens, layers={0: 64, 2: 1.0}):
            output = generate(model, inputs)
        assert torch.equal(torch.stack(output.logits), torch.stack(dense.logits))
        assert torch.equal(output.sequences, dense.sequences)

    @HALVES
    def test_dtypes_and_cache_lengths_are_those_of_the_model(self, dtype):
        model = model_in(dtype)
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            output = generate(model, inputs_of(model))
        # The third row is the longest: 4 of text and two images; a count is per image.
        lengths = [44, 22, 22, 14]
        assert [layer.keys.shape[2] for layer in cache_of(output).layers] == [n + NUM_NEW - 1 for n in lengths]
        for layer in cache_of(output).layers:
            assert layer.keys.dtype == layer.values.dtype == dtype
            assert layer.keys.isfinite().all()
            assert layer.values.isfinite().all()
        assert torch.stack(output.logits).isfinite().all()
        assert reduction.stats().cache_bytes == 2 * sum(lengths) * 2 * 8 * 2


def competing(reduction, seen, row: int):
    """The scores that the visual tokens of a row had where the decoder pruned them."""
    return seen[-1][row][reduction.last.segments[0].visual[row]]


def apart(scores, others, num: int, dtype) -> bool:
    """Whether the first `num` scores lie further above the rest than two ways to compute them lie apart.

    That distance itself has to be one of rounding: a wrong mask or position changes scores by far more.
    """
    noise = float((others / scores - 1).abs().max())
    assert noise < 32 * ROUNDING[dtype]
    best = scores.sort(descending=True).values
    return 1 - float(best[num] / best[num - 1]) > 2 * noise


class TestTies:
    """Where scores are equal the earlier token in raster order stays, however many are equal."""

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.data())
    @settings(deadline=None)
    def test_top_is_stable(self, numbers, data):
        num = data.draw(st.integers(0, len(numbers)))
        expected = sorted(range(len(numbers)), key=lambda index: (-numbers[index], index))[:num]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert top(torch.tensor([numbers], dtype=dtype), num)[0].tolist() == expected

    @pytest.mark.parametrize("length", [576, 2880, 40_000])
    def test_top_of_equal_scores_is_the_beginning(self, length):
        assert torch.equal(top(torch.full((2, length), 0.25), 100), torch.arange(100).expand(2, -1))

    def test_scans_of_equal_scores_take_the_first_of_each_window_and_then_the_first_of_the_rest(self):
        equal = torch.full((2, 64), 1 / 65)
        local, best = scan(equal, equal, (8, 8), 20)
        assert local.tolist() == [[0, 1, 4, 5, 32, 33, 36, 37]] * 2
        assert best.tolist() == [[2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]] * 2
        assert local_scan(equal, (8, 8), 4).tolist() == [[0, 4, 32, 36]] * 2
        assert global_scan(equal, torch.tensor([[1, 0], [2, 63]]), 3).tolist() == [[2, 3, 4], [0, 1, 3]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
    def test_a_model_whose_queries_are_nought_keeps_the_earliest_tokens(self, dtype):
        model = deepcopy(model_in(dtype))
        blocks, layers = model.model.vision_tower.encoder.layers, model.model.language_model.layers
        with torch.no_grad():
            for layer in (blocks[1], blocks[2], layers[1], layers[3]):
                layer.self_attn.q_proj.weight.zero_()
        slots = [0, 1, 4, 5, 32, 33, 36, 37, *(2, 3, 6, 7), *range(8, 16)]
        with vscan.reduce(model, **TWO_STAGES) as reduction, torch.no_grad():
            model(**inputs_of(model))
        for row in reduction.stats().rows:
            images = row.visual_tokens // 64
            entered = [64 * image + slot for image in range(images) for slot in sorted(slots)]
            assert row.kept == [entered, entered[: 9 * images], entered[: 5 * images]]

    @HALVES
    def test_two_tokens_as_like_as_each_other_go_to_the_first(self, dtype):
        tokens = torch.tensor([[[1, 0], [0, 1], [0, 1], [1, 1], [1, 0], [0, 1]]], dtype=dtype)
        merged = merge(tokens, torch.tensor([[0, 2, 4, 5]]))
        # Token 1 is like 2 and 5, token 3 is as like all of them; kept twins stay by themselves.
        assert merged.tolist() == [[[1.0, 0.5], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]]


class TestMerge:
    def reference(self, tokens, kept):
        """In float64, token by token; also the mean in the dtype of the tokens, as it must not be taken."""
        exact, rough = [], []
        for view, slots in zip(tokens, kept.tolist(), strict=True):
            unit = normalize(view.double(), dim=-1)
            groups = {slot: [slot] for slot in slots}
            for token in set(range(len(view))) - set(slots):
                groups[slots[int((unit[slots] @ unit[token]).argmax())]].append(token)
            exact.append(torch.stack([view[members].double().mean(0) for members in groups.values()]))
            total = []
            for members in groups.values():
                sums = torch.zeros_like(view[0])
                for member in members:
                    sums = sums + view[member]
                total.append(sums / len(members))
            rough.append(torch.stack(total))
        return torch.stack(exact), torch.stack(rough)

    @HALVES
    def test_a_merged_token_is_within_one_rounding_of_the_exact_mean(self, dtype):
        generator = torch.Generator().manual_seed(3)
        tokens = (3 + 2 * torch.randn(2, 576, 48, generator=generator)).to(dtype)
        kept = torch.stack([torch.randperm(576, generator=generator)[:12].sort().values for _ in range(2)])
        exact, rough = self.reference(tokens, kept)
        allowed = ROUNDING[dtype] * exact.abs() + 1e-6
        merged = merge(tokens, kept)
        assert merged.dtype == dtype
        assert ((merged.double() - exact).abs() <= allowed).all()
        assert ((rough.double() - exact).abs() > allowed).float().mean() > 0.5  # the bound tells the two apart

    def test_sums_beyond_the_range_of_fp16_are_no_trouble(self):
        tokens = torch.full((1, 576, 8), 500.0, dtype=torch.float16)
        assert torch.equal(merge(tokens, torch.tensor([[3]])), tokens[:, :1])

    @HALVES
    def test_a_kept_token_that_nothing_joins_is_bit_for_bit_itself(self, dtype):
        tokens = torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(merge(tokens, torch.arange(30).unsqueeze(0)), tokens)


class Watch(TorchDispatchMode):
    """Notes every tensor that is made, other than a boolean mask, with two dimensions of `length` or more."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.maps, self.made = length, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.made += 1
                if tensor.dtype != torch.bool and sum(size >= self.length for size in tensor.shape) >= 2:
                    self.maps.append((str(func), tuple(tensor.shape)))
        return output


class TestMemory:
    """256 visual tokens and 23 of text; no other size of the model is above 128."""

    length, rows = 256, ([1, *range(3, 13), "image", *range(20, 32)],)

    @pytest.fixture
    def model(self):
        return tiny_llava(num_layers=4, vision_layers=4, side=16)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize(
        "asked",
        [
            {"visual_tokens": 240, "layers": {2: 100}, "local_layer": 1},
            {"visual_tokens": 60, "layers": {0: 50, 3: 10}, "local_layer": 1},
            {"layers": {0: 250, 3: 10}},
            {"layers": {3: 10}, "positions": "original"},
        ],
        ids=str,
    )
    def test_no_attention_map_is_made(self, model, asked, dtype):
        model = model.to(dtype)
        inputs = {**inputs_of(model, self.rows), "attention_mask": None}
        assert inputs["input_ids"].shape[1] == 279
        with vscan.reduce(model, **asked) as reduction, torch.no_grad(), Watch(self.length) as watch:
            output = model(**inputs)
            model(input_ids=torch.tensor([[5]]), **{CACHE: cache_of(output)})
        assert reduction.kept().shape[1] == 23 + list(asked["layers"].values())[-1]
        assert watch.made > 500
        assert watch.maps == []

    def test_the_watch_sees_the_maps_of_eager_attention(self, model):
        model.set_attn_implementation("eager")
        inputs = {**inputs_of(model, self.rows), "attention_mask": None}
        with vscan.reduce(model, layers={3: 10}), torch.no_grad(), Watch(self.length) as watch:
            model(**inputs)
        assert {shape for _, shape in watch.maps} >= {(1, 4, 257, 257), (1, 4, 279, 279)}

    def test_a_padded_batch_makes_nothing_that_the_dense_one_does_not(self, model):
        inputs = inputs_of(model, (*self.rows, [1, "image", 4]))
        with torch.no_grad(), Watch(self.length) as dense:
            model(**inputs)
        with vscan.reduce(model, layers={2: 10}), torch.no_grad(), Watch(self.length) as watch:
            model(**inputs)
        assert {shape for _, shape in watch.maps} <= {shape for _, shape in dense.maps}
        assert all(shape[1] == 1 for _, shape in watch.maps if len(shape) == 4)  # a mask, not one map a head
