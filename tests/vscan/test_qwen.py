"""vscan on a stock Qwen2.5-VL: everything that generate may do, what is left behind, and what is refused."""

import copy

import pytest
import torch
from accelerate import dispatch_model
from helpers import close
from pairwise import pairwise
from qwen_helpers import IMAGE_TOKEN, image, inputs_of, tiny_qwen, video
from transformers import StaticCache

import vscan
from vscan.compat import CACHE, cache_of

NUM_LAYERS, NUM_ANSWER = 4, 4
RTOL = 5e-5  # of the largest value compared; float32 gave 1.1e-5 on one CPU, and a wrong column gives 1e-2
ROWS = {
    "one": [[1, image(5, 6), 5, 6, 7]],
    "two_images": [[1, image(9, 7), 4, image(4, 4), 9, 9]],
    "unequal": [[1, image(5, 6), 5], [1, 4, image(4, 9), 6, 7], [1, 3, image(8, 8), 4, image(2, 5), 8]],
    "mixed": [[1, image(5, 6), 5, 6], [1, 7, 8, 9], [1, image(6, 6), 3]],
    "videos": [[1, video(2, 5, 4), 5, image(6, 5), 6], [4, 5, video(3, 4, 4), 6]],
}
STAGES = {"encoder": (0.3, {}), "both": (0.4, {2: 0.5}), "middle": (None, {1: 5}), "entry": (0.5, {0: 0.5, 3: 2})}
every_rows = pytest.mark.parametrize("rows", ROWS)
every_stages = pytest.mark.parametrize("stages", STAGES)
some_prompts = pytest.mark.parametrize(("rows", "stages"), pairwise(ROWS, STAGES, together=1))


def reduce(model, stages, **kwargs):
    ratio, layers = STAGES[stages]
    return vscan.reduce(model, visual_tokens=ratio, layers=layers, **kwargs)


def generate(model, inputs, **kwargs):
    options = {"max_new_tokens": NUM_ANSWER, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **{**options, **kwargs})


def answers(output, inputs):
    return output.sequences[:, inputs["input_ids"].shape[1] :]


def same(one, other, rtol: float = 0.0):
    assert torch.equal(one.sequences, other.sequences)
    close(torch.stack(one.logits), torch.stack(other.logits), rtol)


def cache_lengths(cache) -> list[int]:
    return [int(cache.get_seq_length(layer)) for layer in range(NUM_LAYERS)]


@some_prompts
def test_a_batch_equals_its_rows_run_alone(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    with reduce(model, stages) as reduction:
        together = generate(model, inputs)
        kept = [reduction.kept(stage) for stage in range(1 + len(STAGES[stages][1]))]
        for row, parts in enumerate(ROWS[rows]):
            alone = inputs_of([parts])
            shift = inputs["input_ids"].shape[1] - alone["input_ids"].shape[1]
            output = generate(model, alone)
            assert torch.equal(answers(together, inputs)[row], answers(output, alone)[0])
            logits = torch.stack([step[row] for step in together.logits])
            close(logits, torch.cat(output.logits))
            has_images = any(isinstance(part, tuple) for part in parts)
            for stage, columns in enumerate(kept):
                left = columns[row][columns[row] >= 0].tolist()
                expected = reduction.kept(stage)[0].tolist() if has_images else range(alone["input_ids"].shape[1])
                assert left == [column + shift for column in expected]


EVERYTHING = [(None, {}), (1.0, {}), (1.0, {0: 1.0, 3: 1.0}), (None, {1: 1000}), (1000, {0: 1000, 2: 998})]


# tests/contracts/test_family.py says the same of every adapter.
@pytest.mark.parametrize(
    ("rows", "attention", "budgets"), pairwise(ROWS, ["sdpa", "eager"], EVERYTHING, together=1), ids=str
)
def test_keeping_every_token_is_the_stock_model_bit_for_bit(rows, attention, budgets):
    model, inputs, (visual_tokens, layers) = tiny_qwen(), inputs_of(ROWS[rows]), budgets
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            plain, answered = model(**inputs).logits, generate(model, inputs)
            with vscan.reduce(model, visual_tokens=visual_tokens, layers=layers) as reduction:
                assert torch.equal(model(**inputs).logits, plain)
                output = generate(model, inputs)
                assert reduction.last is not None
    finally:
        model.set_attn_implementation("sdpa")
    same(output, answered)


@some_prompts
def test_eager_attention_ranks_alike(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    with reduce(model, stages) as reduction:
        expected = generate(model, inputs)
        kept = [row.kept for row in reduction.stats().rows]
        model.set_attn_implementation("eager")
        try:
            same(generate(model, inputs), expected, RTOL)
        finally:
            model.set_attn_implementation("sdpa")
        assert [row.kept for row in reduction.stats().rows] == kept


@some_prompts
def test_without_a_cache_the_answer_is_the_same(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    with reduce(model, stages):
        same(generate(model, inputs, use_cache=False), generate(model, inputs), RTOL)


@pytest.mark.parametrize("rows", ["one", "unequal", "videos"])
@every_stages
def test_a_static_cache_gives_the_same_answer(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    with reduce(model, stages):
        same(
            generate(model, inputs, cache_implementation="static", disable_compile=True), generate(model, inputs), RTOL
        )


@some_prompts
def test_beams_of_a_batch_are_those_of_its_rows(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    options = {"num_beams": 3, "num_return_sequences": 2, "output_logits": False, "output_scores": True}
    with reduce(model, stages) as reduction:
        together = generate(model, inputs, **options)
        assert len(reduction.last.segments[0].num_visual) == 3 * len(ROWS[rows])
        assert cache_lengths(cache_of(together))[-1] < inputs["input_ids"].shape[1]
        for row, parts in enumerate(ROWS[rows]):
            alone = inputs_of([parts])
            expected = generate(model, alone, **options)
            found = answers(together, inputs)[2 * row : 2 * row + 2]
            assert torch.equal(found, answers(expected, alone))
            scores = together.sequences_scores[2 * row : 2 * row + 2]
            close(scores, expected.sequences_scores)


@every_stages
def test_sampled_sequences_of_one_prompt_start_alike(stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS["unequal"])
    with reduce(model, stages):
        expected = generate(model, inputs).logits[0].repeat_interleave(2, dim=0)
        sampled = generate(model, inputs, do_sample=True, num_return_sequences=2)
    close(sampled.logits[0], expected)


@some_prompts
def test_a_loop_by_hand_without_positions_is_generate(rows, stages):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    with reduce(model, stages), torch.no_grad():
        expected = generate(model, inputs)
        output = model(**inputs)
        cache, mask, steps = cache_of(output), inputs["attention_mask"], [output.logits[:, -1]]
        for tokens in answers(expected, inputs)[:, :-1].split(1, dim=1):
            mask = torch.cat((mask, torch.ones_like(tokens)), dim=1)
            steps.append(model(input_ids=tokens, attention_mask=mask, **{CACHE: cache}).logits[:, -1])
    if rows in ("one", "two_images"):  # else rows are of unequal length, and the last column of some is a filler
        close(steps[0], expected.logits[0])
    close(torch.stack(steps[1:]), torch.stack(expected.logits[1:]))


def test_two_prompts_may_be_under_way_at_once():
    model, many = tiny_qwen(), [inputs_of(ROWS[rows]) for rows in ("one", "two_images")]
    with reduce(model, "both"), torch.no_grad():
        expected = [generate(model, inputs) for inputs in many]
        caches = [cache_of(model(**inputs)) for inputs in many]
        for step in range(NUM_ANSWER - 1):
            for inputs, output, cache in zip(many, expected, caches, strict=True):
                tokens = answers(output, inputs)[:, step : step + 1]
                logits = model(input_ids=tokens, **{CACHE: cache}).logits[:, -1]
                close(logits, output.logits[step + 1])


@pytest.mark.parametrize("second", ["one", "videos", "text"])
def test_rope_deltas_are_right_after_a_reduced_call_followed_by_a_dense_one(second):
    inputs = inputs_of([[1, 5, 6, 7], [1, 8]] if second == "text" else ROWS[second])
    if second == "text":
        del inputs["mm_token_type_ids"]
    fresh = copy.deepcopy(tiny_qwen())
    fresh.model.rope_deltas = None
    expected = generate(fresh, inputs)
    model = tiny_qwen()
    with reduce(model, "both"):
        first = inputs_of(ROWS["two_images"])
        generate(model, first)
        _, deltas = model.model.get_rope_index(**{k: v for k, v in first.items() if k != "pixel_values"})
        assert torch.equal(model.model.rope_deltas, deltas)  # of the full prompt
        if second == "text":
            same(generate(model, inputs), expected)
    same(generate(model, inputs), expected)
    assert torch.equal(model.model.rope_deltas, fresh.model.rope_deltas)


def test_positions_of_kept_tokens_are_the_originals():
    model, inputs = tiny_qwen(), inputs_of(ROWS["unequal"])
    given = {name: value for name, value in inputs.items() if name != "pixel_values"}
    original, deltas = model.model.get_rope_index(**given)
    with reduce(model, "both") as reduction, torch.no_grad():
        model(**inputs)
    for stage, segment in enumerate(reduction.last.segments):
        kept = reduction.kept(stage)
        for row in range(3):
            columns = kept[row][kept[row] >= 0]
            assert torch.equal(segment.positions[:, row, kept[row] >= 0], original[:, row, columns])
    following = inputs["attention_mask"].sum(dim=1, keepdim=True) + deltas
    assert torch.equal(reduction.last.next_position, following)


@pytest.mark.parametrize("rows", ["one", "two_images"])
def test_compact_positions_number_the_tokens_as_text(rows):
    model, inputs = tiny_qwen(), inputs_of(ROWS[rows])
    seen = []
    text = model.model.language_model
    with reduce(model, "encoder", positions="compact"), torch.no_grad():
        hook = text.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        output = generate(model, inputs)
        hook.remove()
        embeds = torch.cat((seen[0], text.embed_tokens(answers(output, inputs)[:, :-1])), dim=1)
    with torch.no_grad():
        expected = model.lm_head(text(inputs_embeds=embeds).last_hidden_state)
    close(torch.stack(output.logits, dim=1), expected[:, -NUM_ANSWER:])


@pytest.mark.parametrize("method", ["vispruner", "fastervlm", "random", "downsample"])
def test_the_other_methods_reduce_as_far(method):
    model, inputs = tiny_qwen(), inputs_of(ROWS["videos"])
    layers = {} if method == "downsample" else {2: 0.5}
    with vscan.reduce(model, method, 0.3, layers) as reduction:
        generate(model, inputs)
    assert [row.stages[0][1] for row in reduction.stats().rows] == [2 * 6 + 9, 3 * 4]


def test_a_budget_is_of_every_image_and_of_every_step_of_a_video():
    model, inputs = tiny_qwen(), inputs_of(ROWS["videos"])
    expected = {0.3: [2 * 6 + 9, 3 * 4], 7: [3 * 7, 3 * 7], 18: [2 * 18 + 18, 3 * 16]}
    for budget, kept in expected.items():
        with vscan.reduce(model, visual_tokens=budget, layers={3: 2}) as reduction:
            output = generate(model, inputs)
        stats = reduction.stats()
        assert [row.stages for row in stats.rows] == [[[0, number], [3, 2 * 3]] for number in kept]
        assert [row.visual_tokens for row in stats.rows] == [70, 48]
        assert [length + NUM_ANSWER - 1 for length in stats.cache_lengths] == cache_lengths(cache_of(output))


def test_in_bfloat16_the_same_tokens_stay_in_every_attention():
    model = copy.deepcopy(tiny_qwen()).to(torch.bfloat16)
    inputs = inputs_of(ROWS["unequal"])
    with reduce(model, "both") as reduction:
        output = generate(model, inputs)
        assert all(step.isfinite().all() for step in output.logits)
        stages = [row.stages for row in reduction.stats().rows]
    assert stages == [[[0, 12], [2, 6]], [[0, 14], [2, 7]], [[0, 29], [2, 14]]]


def anatomy(model) -> dict:
    """Everything that a reduction could leave behind: classes, attributes and hooks of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    found = {}
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items() if key != "rope_deltas"}
        found[name] = (type(module), attributes, {hook: list(getattr(module, hook)) for hook in hooks})
    return found


def test_leaving_the_with_block_gives_the_dense_model_back_bit_for_bit():
    model, inputs = tiny_qwen(), inputs_of(ROWS["mixed"])
    before, answered = anatomy(model), generate(model, inputs)
    try:
        with reduce(model, "both"):
            assert anatomy(model) != before
            generate(model, inputs)
            raise KeyError
    except KeyError:
        pass
    assert anatomy(model) == before
    same(generate(model, inputs), answered)


def test_features_encoded_beforehand_serve_a_reduced_prompt():
    model, inputs = tiny_qwen(), inputs_of(ROWS["unequal"])
    with reduce(model, "both"), torch.no_grad():
        expected = model(**inputs).logits
        encoded = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        assert [int(kept.sum()) for kept in encoded.kept] == encoded.num_kept == [12, 14, 25, 4]
        assert not any(image[~kept].any() for image, kept in zip(encoded.pooler_output, encoded.kept, strict=True))
        assert torch.equal(model(**inputs).logits, expected)


def test_a_turn_that_reuses_a_cache_is_refused():
    model, inputs = tiny_qwen(), inputs_of(ROWS["one"])
    with reduce(model, "both"), torch.no_grad():
        cache = cache_of(model(**inputs))
        with pytest.raises(ValueError, match="re-using a cache across turns is not supported"):
            generate(model, inputs, **{CACHE: cache})
        with pytest.raises(ValueError, match="a prompt with images needs an empty cache"):
            model(**inputs, **{CACHE: cache})


def test_a_static_cache_that_was_reset_serves_a_second_prompt():
    model, inputs = tiny_qwen(), inputs_of(ROWS["one"])
    cache = StaticCache(config=model.config.text_config, max_cache_len=80)
    with reduce(model, "both"):
        expected = generate(model, inputs)
        for _ in range(2):
            same(generate(model, inputs, **{CACHE: cache}, disable_compile=True), expected, RTOL)
            cache.reset()


def test_what_does_not_fit_is_refused():
    model, inputs = tiny_qwen(), inputs_of(ROWS["one"])
    with pytest.raises(ValueError, match="expected decoder layers 0 to 3, got 4"):
        vscan.apply(model, layers={4: 1})
    with pytest.raises(ValueError, match="expected the model that generates, got Qwen2_5_VLModel inside it"):
        vscan.apply(model.model, visual_tokens=0.5)
    with pytest.raises(ValueError, match="expected a local layer below the global one"):
        vscan.apply(model, visual_tokens=0.5, local_layer=3)
    with reduce(model, "both"):
        with pytest.raises(ValueError, match="reduced already"):
            vscan.apply(model, visual_tokens=0.5)
        with pytest.raises(ValueError, match="expected no labels"):
            model(**inputs, labels=inputs["input_ids"])
    assert "reduction" not in vars(model.model.language_model)


def test_placeholders_that_are_not_those_of_the_images_are_refused():
    model, inputs = tiny_qwen(), inputs_of(ROWS["unequal"])
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 8, IMAGE_TOKEN)
    with reduce(model, "both"), pytest.raises(ValueError, match=r"placeholders of images of \[30, 36, 64, 10\] tokens"):
        model(**inputs)


def test_sliding_attention_is_refused(monkeypatch):
    model = tiny_qwen()
    monkeypatch.setattr(model.config.text_config, "layer_types", ["full_attention", "sliding_attention"] * 2)
    with pytest.raises(
        ValueError, match="expected full attention in every layer, got full_attention, sliding_attention"
    ):
        vscan.apply(model, visual_tokens=0.5)


def test_a_replaced_forward_of_the_tower_or_of_a_block_is_noticed(monkeypatch):
    model, inputs = tiny_qwen(), inputs_of(ROWS["one"])
    tower = model.model.visual
    with vscan.reduce(model, visual_tokens=5):
        with monkeypatch.context() as patch:
            patch.setattr(tower, "forward", type(tower).__mro__[2].forward.__get__(tower))
            with pytest.raises(RuntimeError, match=r"reduced Qwen2_5_VisionTransformer\w+ was not entered"):
                model(**inputs)
        with monkeypatch.context() as patch:
            patch.setattr(tower.blocks[1].attn, "forward", lambda hidden, **kwargs: hidden)
            with pytest.raises(RuntimeError, match=r"attention of block 1 .* was not entered"):
                model(**inputs)
        model(**inputs)


@pytest.mark.parametrize("parts", [("",), ("model.visual", "model.language_model", "lm_head")], ids=["whole", "parts"])
def test_a_model_that_accelerate_has_spread_keeps_and_says_the_same(parts):
    inputs = inputs_of(ROWS["unequal"])
    found = []
    for model in (
        tiny_qwen(),
        dispatch_model(copy.deepcopy(tiny_qwen()), dict.fromkeys(parts, "cpu"), force_hooks=True),
    ):
        with vscan.reduce(model, visual_tokens=0.4, layers={2: 0.5}) as reduction:
            answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        found.append((answer.tolist(), *(reduction.kept(stage).tolist() for stage in (0, 1))))
    assert found[0] == found[1]
