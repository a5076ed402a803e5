"""Stock `generate` on a reduced model: tokens, kept columns and the cache of every layer, in every way to decode."""

from functools import lru_cache, wraps
from itertools import product

import pytest
import torch
from helpers import IMAGE_TOKEN, close, pictures, prompt, tiny_llava
from pairwise import pairwise
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    SiglipVisionConfig,
    StaticCache,
)

import vscan
from vscan.compat import CACHE, cache_of

NUM_LAYERS, SIDE, NUM_TOKENS, NUM_NEW = 4, 8, 64, 4
FIELDS = {"local_layer": 1}  # the tiny tower has four layers
TWO_STAGES = {"visual_tokens": 20, "layers": {1: 9, 3: 4}, **FIELDS}

# Texts of 4; of 2, 6 and 4; of 5 around two images; of 3, 5 (no image) and 3 around two images; of 3 around two images
# and 67, as long as each other before anything is dropped.
ROWS = {
    "one": [[1, "image", 5, 6, 7]],
    "batch": [[1, "image", 5], [1, 4, "image", 6, 7, 8, 9], [1, 3, "image", 4, 4]],
    "two_images": [[1, "image", 4, 9, "image", 5, 6]],
    "mixed": [[1, "image", 5, 6], [1, 7, 8, 9, 3], [1, "image", 3, "image", 4]],
    "level": [[1, "image", 3, "image", 4], [1, "image", *range(3, 69)]],
}
# settings: {rows: columns of every layer after the prompt}, of which the longest row decides.
STAGES = {
    "two_stages": (
        TWO_STAGES,
        {
            "one": [24, 13, 13, 8],
            "batch": [26, 15, 15, 10],
            "two_images": [45, 23, 23, 13],
            "mixed": [43, 21, 21, 11],
            "level": [87, 76, 76, 71],
        },
    ),
    "encoder": (
        {"visual_tokens": 0.25, **FIELDS},
        {"one": [20] * 4, "batch": [22] * 4, "two_images": [37] * 4, "mixed": [35] * 4, "level": [83] * 4},
    ),
    "entry": (
        {"layers": {0: 7}},
        {"one": [11] * 4, "batch": [13] * 4, "two_images": [19] * 4, "mixed": [17] * 4, "level": [74] * 4},
    ),
    "original_positions": (
        {"visual_tokens": 30, "layers": {2: 0.5, 3: 0.5}, "positions": "original", **FIELDS},
        {
            "one": [34, 34, 19, 11],
            "batch": [36, 36, 21, 13],
            "two_images": [65, 65, 35, 20],
            "mixed": [63, 63, 33, 18],
            "level": [97, 97, 82, 74],
        },
    ),
}


@lru_cache(maxsize=2)
def model_with(attention: str):
    model = tiny_llava(num_layers=NUM_LAYERS, vision_layers=4, side=SIDE)
    model.set_attn_implementation(attention)
    return model


@pytest.fixture
def model():
    return model_with("sdpa")


@pytest.fixture
def fresh():
    """A model of its own, for tests that do something to it."""
    return tiny_llava(num_layers=NUM_LAYERS, vision_layers=4, side=SIDE)


def inputs_of(rows, seed: int = 0) -> dict:
    ids, mask = prompt(rows, NUM_TOKENS)
    inputs = {"input_ids": ids, "attention_mask": mask}
    number = sum(row.count("image") for row in rows)
    return {**inputs, "pixel_values": pictures(model_with("sdpa"), number, seed)} if number else inputs


def rows_alone(rows) -> list[dict]:
    """Every row as a prompt of its own, without padding, with its own pictures."""
    inputs, first, alone = inputs_of(rows), 0, []
    for row, ids, mask in zip(rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        one = {"input_ids": ids[mask.bool()].unsqueeze(0)}
        if "image" in row:
            one["pixel_values"] = inputs["pixel_values"][first : first + row.count("image")]
            first += row.count("image")
        alone.append(one)
    return alone


def generate(model, inputs, **kwargs):
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(**inputs, **{**options, **kwargs})


def answer(output, inputs):
    return output.sequences[:, inputs["input_ids"].shape[1] :]


def cached(output, num_layers: int = NUM_LAYERS) -> list[int]:
    return [int(cache_of(output).get_seq_length(layer)) for layer in range(num_layers)]


def plus(lengths, number) -> list[int]:
    return [length + number for length in lengths]


def of_prompt(kept, length: int) -> list[list[int]]:
    """Kept columns of each row, without fillers and without an answer that came along."""
    return [row[(row >= 0) & (row < length)].tolist() for row in kept]


every_prompt = pytest.mark.parametrize(("rows", "stages"), list(product(ROWS, STAGES)))
some_prompts = pytest.mark.parametrize(("rows", "stages"), pairwise(ROWS, STAGES, together=1))


class TestGreedy:
    @every_prompt
    def test_every_layer_caches_what_it_saw_and_nothing_else(self, model, rows, stages):
        settings, lengths = STAGES[stages]
        inputs = inputs_of(ROWS[rows])
        dense = generate(model, inputs)
        assert cached(dense) == [inputs["input_ids"].shape[1] + NUM_NEW - 1] * NUM_LAYERS
        with vscan.reduce(model, **settings) as reduction:
            output = generate(model, inputs)
            assert cached(output) == plus(lengths[rows], NUM_NEW - 1)
            assert reduction.stats().cache_lengths == lengths[rows]
            assert reduction.kept().shape[1] == lengths[rows][-1]
        keys = [layer.keys.shape[2] for layer in cache_of(output).layers]
        assert keys == plus(lengths[rows], NUM_NEW - 1)

    @pytest.mark.parametrize(
        ("rows", "stages", "attention", "cache"),
        pairwise(ROWS, STAGES, ["sdpa", "eager"], ["dynamic", "static", "none"]),
    )
    def test_every_cache_and_every_attention_give_the_same_tokens(self, rows, stages, attention, cache):
        settings, lengths = STAGES[stages]
        inputs, model = inputs_of(ROWS[rows]), model_with(attention)
        length = inputs["input_ids"].shape[1]
        with vscan.reduce(model_with("sdpa"), **settings) as reduction:
            expected = generate(model_with("sdpa"), inputs)
            kept = [of_prompt(reduction.kept(stage), length) for stage in range(len(reduction.config.layers) + 1)]
        kwargs = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
        with vscan.reduce(model, **settings) as reduction:
            output = generate(model, inputs, **kwargs)
            assert [of_prompt(reduction.kept(stage), length) for stage in range(len(kept))] == kept
        assert torch.equal(output.sequences, expected.sequences)
        close(torch.stack(output.logits), torch.stack(expected.logits))
        if cache == "none":
            assert cache_of(output) is None
        else:
            assert cached(output) == plus(lengths[rows], NUM_NEW - 1)

    @some_prompts
    def test_a_loop_by_hand_without_positions_is_generate(self, model, rows, stages):
        settings, lengths = STAGES[stages]
        inputs = inputs_of(ROWS[rows])
        padded = bool((inputs["attention_mask"] == 0).any())
        for cache in (
            DynamicCache(config=model.config.text_config),
            StaticCache(config=model.config.text_config, max_cache_len=200),
        ):
            with vscan.reduce(model, **settings), torch.no_grad():
                expected = generate(model, inputs)
                mask, tokens = inputs["attention_mask"] if padded else None, []
                given = {**inputs, "attention_mask": mask}
                for _ in range(NUM_NEW):
                    logits = model(**given, **{CACHE: cache}).logits[:, -1]
                    close(logits, expected.logits[len(tokens)])
                    logits[:, IMAGE_TOKEN] = -torch.inf
                    tokens.append(logits.argmax(-1, keepdim=True))
                    if padded:
                        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
                    given = {"input_ids": tokens[-1], "attention_mask": mask}
            assert torch.equal(torch.cat(tokens, dim=1), answer(expected, inputs))
            assert [int(cache.get_seq_length(layer)) for layer in range(4)] == plus(lengths[rows], NUM_NEW - 1)

    @some_prompts
    def test_several_tokens_at_once_continue_a_prompt_as_one_by_one(self, model, rows, stages):
        settings, _ = STAGES[stages]
        inputs = inputs_of(ROWS[rows])
        with vscan.reduce(model, **settings), torch.no_grad():
            expected = generate(model, inputs)
            cache = cache_of(model(**inputs))
            tokens = answer(expected, inputs)[:, :-1]
            mask = torch.cat((inputs["attention_mask"], torch.ones_like(tokens)), dim=1)
            logits = model(input_ids=tokens, attention_mask=mask, **{CACHE: cache}).logits
        close(logits, torch.stack(expected.logits, dim=1)[:, 1:])


def test_tokens_of_an_answer_that_are_masked_are_not_seen(model):
    for rows in (ROWS["one"], ROWS["batch"]):
        inputs, number = inputs_of(rows), len(rows)
        answers = torch.tensor([[5, 6, 7]]).expand(number, -1)
        mask = torch.cat((inputs["attention_mask"], torch.tensor([[1, 0, 1]]).expand(number, -1)), dim=1)
        places = torch.tensor([[100, 101, 102]]).expand(number, -1)
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            caches = [cache_of(model(**inputs)) for _ in range(3)]
            masked = model(input_ids=answers, attention_mask=mask, position_ids=places, **{CACHE: caches[0]}).logits
            without, stay = mask[:, torch.arange(mask.shape[1]) != mask.shape[1] - 2], [0, 2]
            left_out = model(
                input_ids=answers[:, stay],
                attention_mask=without,
                position_ids=places[:, stay],
                **{CACHE: caches[1]},
            ).logits
            seen = model(
                input_ids=answers,
                attention_mask=torch.cat((inputs["attention_mask"], torch.ones_like(answers)), dim=1),
                position_ids=places,
                **{CACHE: caches[2]},
            ).logits
        close(masked[:, stay], left_out)
        assert (masked[:, 2] - seen[:, 2]).abs().max() > 0.01


# transformers before it encoded images outside forward gives each beam the wrong picture of several
in_groups = pytest.mark.skipif(
    not hasattr(LlavaForConditionalGeneration, "_expand_multimodal_outputs"),
    reason="this transformers mixes up several images of one prompt in beams, also in the dense model",
)
BY_DEFAULT = [*product(["batch"], STAGES), ("two_images", "two_stages"), ("mixed", "entry")]
BEAMS = [
    pytest.param(
        *case,
        marks=(*[in_groups] * (case[0] != "batch"), *[pytest.mark.slow] * (case not in BY_DEFAULT)),
    )
    for case in product(["batch", "two_images", "mixed"], STAGES)
]


class TestBeams:
    several = pytest.mark.parametrize(
        "rows", ["batch", pytest.param("two_images", marks=in_groups), pytest.param("mixed", marks=in_groups)]
    )

    @pytest.mark.parametrize("rows", ROWS)
    def test_beams_that_keep_everything_are_dense_beams_exactly(self, model, rows):
        inputs = inputs_of(ROWS[rows])
        kwargs = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
        dense = generate(model, inputs, **kwargs)
        with vscan.reduce(model, visual_tokens=NUM_TOKENS, layers={2: NUM_TOKENS}) as reduction:
            output = generate(model, inputs, **kwargs)
            assert len(reduction.kept()) == 3 * len(ROWS[rows])
        assert torch.equal(output.sequences, dense.sequences)
        assert torch.equal(output.sequences_scores, dense.sequences_scores)

    @pytest.mark.parametrize(("rows", "stages"), BEAMS)
    def test_beams_of_a_batch_are_those_of_its_rows(self, model, rows, stages):
        settings, lengths = STAGES[stages]
        inputs, kwargs = inputs_of(ROWS[rows]), {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
        with vscan.reduce(model, **settings):
            together = generate(model, inputs, **kwargs)
            alone = [generate(model, one, **kwargs) for one in rows_alone(ROWS[rows])]
        assert cached(together) == plus(lengths[rows], NUM_NEW - 1)
        expected = torch.cat([answer(output, one) for output, one in zip(alone, rows_alone(ROWS[rows]), strict=True)])
        assert torch.equal(answer(together, inputs), expected)
        scores = torch.cat([output.sequences_scores for output in alone])
        close(together.sequences_scores, scores)

    @several
    @pytest.mark.parametrize("kwargs", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
    def test_beams_need_no_cache_and_no_certain_one(self, model, rows, kwargs):
        inputs = inputs_of(ROWS[rows])
        with vscan.reduce(model, **TWO_STAGES):
            expected = generate(model, inputs, num_beams=3)
            output = generate(model, inputs, num_beams=3, **kwargs)
        assert torch.equal(output.sequences, expected.sequences)

    @several
    def test_the_score_of_a_beam_is_that_of_its_tokens(self, model, rows):
        inputs = inputs_of(ROWS[rows])
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            output = generate(model, inputs, num_beams=3, length_penalty=0.0, output_scores=True)
            tokens = answer(output, inputs)
            first = model(**inputs)
            mask = torch.cat((inputs["attention_mask"], torch.ones_like(tokens[:, 1:])), dim=1)
            rest = model(input_ids=tokens[:, :-1], attention_mask=mask, **{CACHE: cache_of(first)})
        scores = torch.cat((first.logits[:, -1:], rest.logits), dim=1).log_softmax(-1)
        expected = scores.gather(2, tokens.unsqueeze(-1)).sum((1, 2))
        close(output.sequences_scores, expected)


class TestSampling:
    def sample(self, model, inputs, seed=7, **kwargs):
        torch.manual_seed(seed)
        return generate(model, inputs, do_sample=True, temperature=2.0, top_k=0, **kwargs)

    @pytest.mark.parametrize("rows", ROWS)
    def test_a_seed_gives_the_same_tokens_again(self, model, rows):
        inputs = inputs_of(ROWS[rows])
        with vscan.reduce(model, **TWO_STAGES):
            first, second = self.sample(model, inputs), self.sample(model, inputs)
            other = self.sample(model, inputs, seed=8)
        assert torch.equal(first.sequences, second.sequences)
        assert not torch.equal(first.sequences, other.sequences)
        assert cached(first) == plus(STAGES["two_stages"][1][rows], NUM_NEW - 1)

    def test_several_sequences_are_those_of_the_prompt_repeated(self, model):
        rows = ROWS["batch"]
        with vscan.reduce(model, **TWO_STAGES):
            output = self.sample(model, inputs_of(rows), num_return_sequences=2)
            inputs = {name: value.repeat_interleave(2, dim=0) for name, value in inputs_of(rows).items()}
            repeated = self.sample(model, inputs)
        assert torch.equal(output.sequences, repeated.sequences)
        assert not torch.equal(output.sequences[0], output.sequences[1])
        assert cached(output) == plus(STAGES["two_stages"][1]["batch"], NUM_NEW - 1)

    @pytest.mark.parametrize("kwargs", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
    def test_sampling_needs_no_cache_and_no_certain_one(self, model, kwargs):
        inputs = inputs_of(ROWS["mixed"])
        with vscan.reduce(model, **TWO_STAGES):
            assert torch.equal(self.sample(model, inputs, **kwargs).sequences, self.sample(model, inputs).sequences)


class TestText:
    text = ROWS["mixed"][1]

    def test_a_prompt_without_images_is_dense_exactly(self, model):
        inputs = inputs_of([self.text, [1, 3]])
        dense = generate(model, inputs)
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            output = generate(model, inputs)
            with pytest.raises(RuntimeError, match="expected a prompt with images to have run"):
                reduction.kept()
            with pytest.raises(RuntimeError, match="expected a prompt with images to have run"):
                reduction.stats()
        assert torch.equal(output.sequences, dense.sequences)
        assert torch.equal(torch.stack(output.logits), torch.stack(dense.logits))
        assert cached(output) == cached(dense) == [5 + NUM_NEW - 1] * NUM_LAYERS

    @pytest.mark.parametrize("stages", STAGES)
    def test_a_row_without_images_in_a_batch_with_images_is_the_dense_row(self, model, stages):
        settings, _ = STAGES[stages]
        inputs, alone = inputs_of(ROWS["mixed"]), inputs_of([self.text])
        dense = generate(model, alone)
        with vscan.reduce(model, **settings) as reduction:
            output = generate(model, inputs)
            length = inputs["input_ids"].shape[1]
            for stage in range(len(reduction.config.layers) + 1):
                assert of_prompt(reduction.kept(stage), length)[1] == list(range(length - 5, length))
        assert torch.equal(answer(output, inputs)[1], answer(dense, alone)[0])
        close(torch.stack(output.logits)[:, 1], torch.stack(dense.logits)[:, 0])

    @pytest.mark.parametrize("kind", ["dynamic", "static"])
    def test_a_cache_that_was_emptied_remembers_no_picture(self, model, kind):
        config, rows = model.config.text_config, ROWS["batch"]
        cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=100)
        inputs = inputs_of([self.text, [1, 3], [1, 9, 9]])
        with vscan.reduce(model, **TWO_STAGES):
            expected = generate(model, inputs)
            pictured = generate(model, inputs_of(rows))
            assert torch.equal(generate(model, inputs_of(rows), **{CACHE: cache}).sequences, pictured.sequences)
            cache.reset()
            if int(cache.get_seq_length()) > 0:
                pytest.skip("this transformers does not empty a dynamic cache")
            output = generate(model, inputs, **{CACHE: cache})
            assert torch.equal(output.sequences, expected.sequences)
            close(torch.stack(output.logits), torch.stack(expected.logits))
            cache.reset()
            assert torch.equal(generate(model, inputs_of(rows), **{CACHE: cache}).sequences, pictured.sequences)


class TestReentrancy:
    def test_two_prompts_under_way_on_one_model_do_not_meet(self, model):
        prompts = [inputs_of(ROWS["one"]), inputs_of(ROWS["two_images"], seed=1), inputs_of([TestText.text])]
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            expected = [generate(model, inputs) for inputs in prompts]
            caches, given = [], []
            for inputs in prompts:
                output = model(**{**inputs, "attention_mask": None})
                caches.append(cache_of(output))
                given.append([output.logits[:, -1]])
            for step in range(1, NUM_NEW):
                for cache, logits, output in zip(caches, given, expected, strict=True):
                    token = output.sequences[:, step - 1 - NUM_NEW].unsqueeze(1)
                    logits.append(model(input_ids=token, **{CACHE: cache}).logits[:, -1])
        for logits, output in zip(given, expected, strict=True):
            close(torch.stack(logits), torch.stack(output.logits))

    def test_two_reductions_of_two_models_do_not_meet(self, model, fresh):
        inputs = inputs_of(ROWS["one"])
        with vscan.reduce(model, **TWO_STAGES):
            first = generate(model, inputs)
        with vscan.reduce(fresh, visual_tokens=10, **FIELDS):
            second = generate(fresh, inputs)
            with vscan.reduce(model, **TWO_STAGES):
                assert torch.equal(generate(model, inputs).sequences, first.sequences)
                again = generate(fresh, inputs)
        assert torch.equal(again.sequences, second.sequences)
        assert cached(again) == [14 + NUM_NEW - 1] * NUM_LAYERS


class TestOutputs:
    @pytest.mark.parametrize("rows", ROWS)
    def test_hidden_states_have_the_length_of_their_layer(self, model, rows):
        inputs, lengths = inputs_of(ROWS[rows]), STAGES["two_stages"][1][rows]
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
            assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
            answered = generate(model, inputs, output_hidden_states=True)
        # The first is the input of layer 0, the others are what each layer gives; the encoder shortens before layer 0.
        assert [states.shape[1] for states in output.hidden_states] == [lengths[0], *lengths]
        assert [states.shape[1] for states in answered.hidden_states[0]] == [lengths[0], *lengths]
        assert all(states.shape[1] == 1 for step in answered.hidden_states[1:] for states in step)
        assert not any(states.isnan().any() for states in output.hidden_states)

    def test_attention_maps_have_the_size_of_their_layer(self):
        model, inputs = model_with("eager"), inputs_of(ROWS["one"])
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        assert [tuple(maps.shape) for maps in attentions] == [(1, 4, n, n) for n in (24, 13, 13, 8)]

    def test_a_tuple_holds_what_the_named_output_holds(self, model):
        inputs = inputs_of(ROWS["one"])
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            named, output = model(**inputs), model(**inputs, return_dict=False)
        assert isinstance(output, tuple)
        assert torch.equal(output[0], named.logits)

    def test_the_last_column_alone_may_be_asked_for(self, model):
        inputs = inputs_of(ROWS["batch"])
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            last, all_of_them = model(**inputs, logits_to_keep=1).logits, model(**inputs).logits
        assert last.shape[1] == 1
        close(last, all_of_them[:, -1:])

    def test_a_padded_row_alone_is_the_row_without_padding(self, model):
        rows = ROWS["batch"]
        inputs = inputs_of([[0] * 5 + rows[0]])
        inputs["attention_mask"][:, :5] = 0
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            output = generate(model, inputs)
            kept = of_prompt(reduction.kept(), 10**6)[0]
            expected = generate(model, {**inputs_of([rows[0]])})
            assert [column - 5 for column in kept] == reduction.kept()[0].tolist()
        assert torch.equal(answer(output, inputs)[0], expected.sequences[0, -NUM_NEW:])

    def test_arguments_may_be_given_by_place_as_to_the_dense_model(self, model):
        inputs, config = inputs_of(ROWS["one"]), GenerationConfig(max_new_tokens=3, suppress_tokens=[IMAGE_TOKEN])
        rest = {"pixel_values": inputs["pixel_values"]}
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            expected = model.generate(input_ids=inputs["input_ids"], generation_config=config, **rest)
            assert torch.equal(model.generate(inputs["input_ids"], generation_config=config, **rest), expected)
            assert torch.equal(model.generate(inputs=inputs["input_ids"], generation_config=config, **rest), expected)
            by_place = model(inputs["input_ids"], inputs["pixel_values"]).logits
            assert torch.equal(by_place, model(input_ids=inputs["input_ids"], **rest).logits)
            assert torch.equal(model.generate(inputs["input_ids"], config, **rest), expected)


class TestHandle:
    def test_remove_may_be_called_twice_and_apply_again_after_it(self, fresh):
        inputs = inputs_of(ROWS["one"])
        dense = generate(fresh, inputs)
        reduction = vscan.apply(fresh, **TWO_STAGES)
        reduced = generate(fresh, inputs)
        reduction.remove()
        reduction.remove()
        assert cached(generate(fresh, inputs)) == cached(dense)
        again = vscan.apply(fresh, **TWO_STAGES)
        reduction.remove()  # of the first, which is not in force any more
        output = generate(fresh, inputs)
        assert cached(output) == cached(reduced) == plus([24, 13, 13, 8], NUM_NEW - 1)
        assert torch.equal(output.sequences, reduced.sequences)
        again.remove()
        assert torch.equal(generate(fresh, inputs).sequences, dense.sequences)

    def test_what_somebody_else_put_on_the_model_is_there_again_afterwards(self, fresh):
        calls, original, features = [], fresh.generate, fresh.model.get_image_features

        @wraps(original)
        def logged(*args, **kwargs):
            calls.append("generate")
            return original(*args, **kwargs)

        @wraps(features)
        def counted(*args, **kwargs):
            calls.append("features")
            return features(*args, **kwargs)

        fresh.generate, fresh.model.get_image_features = logged, counted
        handles = [fresh.register_forward_pre_hook(lambda *args: None), fresh.model.register_forward_hook(print)]
        handles[1].remove()
        with vscan.reduce(fresh, **TWO_STAGES):
            generate(fresh, inputs_of(ROWS["one"]))
            assert calls == ["generate"]
        assert vars(fresh).get("generate") is logged
        assert vars(fresh.model).get("get_image_features") is counted
        assert list(fresh._forward_pre_hooks) == [handles[0].id]

    def test_a_decoder_that_is_bypassed_is_an_error(self, fresh):
        text = fresh.model.language_model
        with vscan.reduce(fresh, **TWO_STAGES):
            text.forward = LlamaModel.forward.__get__(text)  # as a library might that wrapped the model earlier
            with pytest.raises(RuntimeError, match="the reduced decoder of LlavaModel was not entered"):
                fresh(**inputs_of(ROWS["one"]))
            del text.forward
            assert fresh(**inputs_of(ROWS["one"])).logits.shape[1] == 8

    def test_a_failed_apply_leaves_nothing_behind(self, model):
        before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
        for wrong in ({"layers": {9: 3}}, {"visual_tokens": 20}, {"visual_tokens": 20, "seed": 1}):
            with pytest.raises(ValueError, match="expected"):
                vscan.apply(model, **wrong)
        assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"visual_tokens": 0}, "visual_tokens: expected a count of at least 1, got 0"),
            ({"visual_tokens": -1}, "visual_tokens: expected a count of at least 1, got -1"),
            ({"visual_tokens": 1.5}, r"visual_tokens: expected a share in \(0, 1\], got 1.5"),
            ({"visual_tokens": 0.0}, r"visual_tokens: expected a share in \(0, 1\], got 0.0"),
            ({"visual_tokens": True}, r"visual_tokens: expected a count \(int\) or a share \(float\), got True"),
            ({"visual_tokens": "96"}, r"visual_tokens: expected a count \(int\) or a share \(float\), got '96'"),
            ({"layers": {1: -1}}, "layers: budget of layer 1: expected a count of at least 0, got -1"),
            ({"layers": {1: 1.5}}, r"layers: budget of layer 1: expected a share in \(0, 1\], got 1.5"),
            ({"layers": {1: True}}, "layers: budget of layer 1: expected a count .* got True"),
            ({"layers": {1: "96"}}, "layers: budget of layer 1: expected a count .* got '96'"),
            ({"layers": {1: None}}, "layers: budget of layer 1: expected a count .* got None"),
            ({"layers": {NUM_LAYERS: 3}}, "layers: expected decoder layers 0 to 3, got 4"),
            ({"layers": {-1: 3}}, "layers: expected a decoder layer of 0 or more, got -1"),
            ({"layers": [2]}, r"layers: expected pairs of layer and budget such as \{16: 32\}, got 2"),
            ({"layers": [(2, 5), (1, 3)]}, "layers: expected ascending decoder layers, got 1 after 2"),
            ({"method": "nothing"}, "method: expected one of vscan, .*, got 'nothing'"),
            ({"budget": 3}, r"method 'vscan': expected hyper-parameters among \[.*'local_layer'.*\], got \['budget'\]"),
            ({"positions": "dense"}, "positions: expected one of auto, compact, original, got 'dense'"),
            ({"visual_tokens": 9, "local_layer": 2}, "expected a local layer below the global one, got layer 2 and"),
            ({"visual_tokens": 9, "local_layer": 3}, "expected a local layer below the global one, got layer 3 and"),
            ({"visual_tokens": 9, "local_layer": 4}, "VScan: expected one of 4 vision layers, got 4"),
        ],
        ids=str,
    )
    def test_a_reduction_that_fits_no_model(self, model, kwargs, message):
        with pytest.raises(ValueError, match=message):
            vscan.apply(model, **kwargs)
        assert "generate" not in vars(model)

    def test_a_second_reduction(self, model):
        with (
            vscan.reduce(model, layers={1: 3}) as reduction,
            pytest.raises(ValueError, match="expected a dense model, got one that is reduced already"),
        ):
            vscan.apply(model, layers={2: 3})
        assert reduction.config.layers == ((1, 3),)
        assert type(model.model.language_model) is LlamaModel

    @pytest.mark.parametrize("reduced", [False, True])
    def test_a_part_of_a_model_that_does_not_see_what_generate_is_given(self, model, reduced):
        with vscan.reduce(model, layers={1: 3} if reduced else {}):
            for part in (model.model, model.model.language_model, model.model.vision_tower):
                with pytest.raises(ValueError, match="expected "):
                    vscan.apply(part, layers={2: 3})

    def test_a_model_of_another_kind(self):
        config = LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        with pytest.raises(ValueError, match=r"expected a model of type llava.*, got LlamaForCausalLM of type 'llama'"):
            vscan.apply(LlamaForCausalLM(config), layers={0: 1})

    def test_something_that_is_no_transformers_model(self):
        with pytest.raises(ValueError, match=r"expected a model of type llava.*, got Linear of type None"):
            vscan.apply(torch.nn.Linear(2, 2), layers={0: 1})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vision_config": SiglipVisionConfig}, "vision tower: expected 'clip_vision_model', got 'siglip_vision_"),
            ({"text_config": MistralConfig}, "language model: expected 'llama', got 'mistral'"),
            ({"vision_feature_select_strategy": "full"}, "expected 'default', got 'full'"),
            ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer: expected one layer, got \[-2, -1\]"),
        ],
        ids=str,
    )
    def test_a_llava_of_other_parts(self, change, message):
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        parts = {
            "vision_config": change.get("vision_config", CLIPVisionConfig)(**sizes, image_size=8, patch_size=4),
            "text_config": change.get("text_config", LlamaConfig)(**sizes, num_key_value_heads=2, vocab_size=9),
        }
        others = {name: value for name, value in change.items() if name not in parts}
        model = LlavaForConditionalGeneration(LlavaConfig(**parts, image_token_index=8, **others))
        with pytest.raises(ValueError, match=message):
            vscan.apply(model, layers={1: 1})

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"prefill_chunk_size": 8}, "expected prefill_chunk_size=None while visual tokens are reduced, got 8"),
            ({"prompt_lookup_num_tokens": 3}, "expected prompt_lookup_num_tokens=None .*, got 3"),
            ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)}, "prompt_lookup_num_tokens=None"),
            ({"generation_config": GenerationConfig(prefill_chunk_size=3)}, "prefill_chunk_size=None"),
            ({"assistant_early_exit": 2}, "expected assistant_early_exit=None .*, got 2"),
            ({"cache_implementation": "paged"}, "expected a dynamic or a static cache .*, got 'paged'"),
        ],
        ids=str,
    )
    def test_a_way_to_generate_that_cannot_work(self, model, kwargs, message):
        with vscan.reduce(model, **TWO_STAGES), pytest.raises(ValueError, match=message):
            model.generate(**inputs_of(ROWS["one"]), max_new_tokens=2, **kwargs)

    def test_an_assistant(self, model):
        with vscan.reduce(model, **TWO_STAGES), pytest.raises(ValueError, match="expected assistant_model=None"):
            model.generate(**inputs_of(ROWS["one"]), max_new_tokens=2, assistant_model=model)

    @pytest.mark.parametrize("static", [False, True])
    def test_a_cache_that_holds_something(self, model, static):
        config = model.config.text_config
        with vscan.reduce(model, **TWO_STAGES), torch.no_grad():
            for first in (inputs_of([[1, 3, 4]]), inputs_of(ROWS["one"])):
                cache = StaticCache(config=config, max_cache_len=99) if static else DynamicCache(config=config)
                model(**first, **{CACHE: cache})
                held = 3 if "pixel_values" not in first else 24
                with pytest.raises(ValueError, match=f"expected an empty cache .*, got one of {held} tokens"):
                    generate(model, inputs_of(ROWS["one"]), **{CACHE: cache})
                with pytest.raises(ValueError, match=f"needs an empty cache .* one that holds {held} tokens"):
                    model(**inputs_of(ROWS["one"]), **{CACHE: cache})

    def test_labels(self, model):
        inputs = inputs_of(ROWS["one"])
        with vscan.reduce(model, **TWO_STAGES), pytest.raises(ValueError, match=r"expected no labels.*reduction.kept"):
            model(**inputs, labels=inputs["input_ids"])

    def test_embeddings_in_place_of_tokens(self, model):
        inputs = inputs_of(ROWS["one"])
        embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        with vscan.reduce(model, **TWO_STAGES):
            with pytest.raises(ValueError, match=r"expected input_ids with pixel_values .*, got inputs_embeds"):
                model(inputs_embeds=embeds)
            with pytest.raises(ValueError, match=r"expected input_ids beside pixel_values .*, got None"):
                model(inputs_embeds=embeds, **inputs)
            with pytest.raises(ValueError, match=r"expected input_ids beside pixel_values .*, got None"):
                model.generate(inputs_embeds=embeds, **inputs, max_new_tokens=2)

    @pytest.mark.parametrize("change", [{"visual_tokens": None}, {}], ids=str)
    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("rows", ["two_images", "mixed"])
    def test_more_or_fewer_images_than_the_prompt_holds(self, model, rows, number, change):
        inputs = {**inputs_of(ROWS[rows]), "pixel_values": pictures(model, number + (rows == "mixed"))}
        match = r"Image features and image tokens do not match|expected the placeholders of images of \[64"
        with vscan.reduce(model, **{**TWO_STAGES, **change}):
            for call in (lambda: model(**inputs), lambda: generate(model, inputs)):
                with pytest.raises(ValueError, match=match):
                    call()

    @pytest.mark.parametrize(
        "asked", [{"vision_feature_layer": [-2, -1]}, {"vision_feature_select_strategy": "full"}], ids=str
    )
    def test_other_features_than_the_reduction_was_fitted_to(self, model, asked):
        with vscan.reduce(model, **TWO_STAGES), pytest.raises(ValueError, match="expected"):
            model(**inputs_of(ROWS["one"]), **asked)


class TestReport:
    """Two prompts of one and of two images: 64 -> 20 -> 9 -> 4 and 128 -> 40 -> 18 -> 8 visual tokens."""

    rows = ([1, "image", 5, 6], [1, "image", 3, "image", 4])

    @pytest.fixture
    def reduction(self, model):
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            generate(model, inputs_of(self.rows))
        return reduction

    def test_every_number_of_two_stages(self, reduction):
        stats = reduction.stats()
        hidden, inner = 32, 64

        def flops(*per_layer):
            return sum(4 * n * hidden**2 + 2 * n**2 * hidden + 3 * n * hidden * inner for n in per_layer)

        assert stats.method == "vscan"
        assert stats.cache_lengths == [43, 21, 21, 11]
        assert stats.cache_bytes == 2 * (43 + 21 + 21 + 11) * 2 * 8 * 4  # k and v, two heads of 8, fp32
        first, second = stats.rows
        assert (first.visual_tokens, second.visual_tokens) == (64, 128)
        assert first.stages == [[0, 20], [1, 9], [3, 4]]
        assert second.stages == [[0, 40], [1, 18], [3, 8]]
        assert first.tokens_per_layer == [20, 9, 9, 4]
        assert second.tokens_per_layer == [40, 18, 18, 8]
        assert (first.average_tokens, second.average_tokens) == (10.5, 21.0)
        assert (first.retention, second.retention) == (10.5 / 64, 21 / 128)
        assert (first.flops, second.flops) == (flops(20, 9, 9, 4), flops(40, 18, 18, 8))
        assert (first.flops_at_average, second.flops_at_average) == (flops(*[10.5] * 4), flops(*[21] * 4))
        assert (first.flops_dense, second.flops_dense) == (flops(*[64] * 4), flops(*[128] * 4))
        for row in stats.rows:
            assert [len(kept) for kept in row.kept] == [tokens for _, tokens in row.stages]
            for before, after in zip(row.kept, row.kept[1:], strict=False):
                assert set(after) < set(before)

    def test_it_prints_every_number(self, reduction):
        text = str(reduction.stats())
        first, second = reduction.stats().rows
        for part in (
            "vscan: 2 prompts",
            "prompt 0: 64 visual tokens: 20 from layer 0, then 9 from layer 1, then 4 from layer 3",
            "prompt 1: 128 visual tokens: 40 from layer 0, then 18 from layer 1, then 8 from layer 3",
            "average over the layers 10.5 (16.4%)",
            "average over the layers 21.0 (16.4%)",
            f"decoder FLOPs {first.flops / 1e9:.3g} G of {first.flops_dense / 1e9:.3g} G dense",
            f"decoder FLOPs {second.flops / 1e9:.3g} G of {second.flops_dense / 1e9:.3g} G dense",
            f"({first.flops_at_average / 1e9:.3g} G at the average",
            "cache length 43 from layer 0, 21 from layer 1, 11 from layer 3 (0.01 MiB a row), float32",
        ):
            assert part in text

    def test_kept_names_columns_of_the_full_prompt(self, reduction):
        ids = inputs_of(self.rows)["input_ids"]
        shift = ids.shape[1] - 67  # the first row is padded by so much
        stats = reduction.stats()
        for stage, length in enumerate((43, 21, 11)):
            kept = reduction.kept(stage)
            assert kept.shape == (2, length)
            assert kept.dtype == torch.long
            for row, (pad, place) in enumerate(((shift, [range(1, 65)]), (0, [range(1, 65), range(66, 130)]))):
                columns = kept[row][kept[row] >= 0].tolist()
                assert columns == sorted(columns)
                slots = [pad + column for places in place for column in places]
                visual = [slots.index(column) for column in columns if column in slots]
                assert visual == stats.rows[row].kept[stage]
                text = [column for column in range(pad, ids.shape[1]) if column not in slots]
                assert [column for column in columns if column not in slots] == text
        assert torch.equal(reduction.kept(), reduction.kept(2))
        assert (reduction.kept()[0] == -1).sum() == 11 - (3 + 4)
        with pytest.raises(IndexError):
            reduction.kept(3)

    def test_the_dense_shares_of_a_row_without_images(self, model):
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            generate(model, inputs_of(ROWS["mixed"]))
        row = reduction.stats().rows[1]
        assert (row.visual_tokens, row.tokens_per_layer, row.retention, row.flops) == (0, [0] * 4, 1.0, 0)
        assert row.kept == [[], [], []]

    def test_it_tells_of_the_last_prompt_and_of_nothing_where_that_has_no_images(self, model):
        with vscan.reduce(model, **TWO_STAGES) as reduction:
            generate(model, inputs_of(ROWS["one"]))
            kept = reduction.kept()
            generate(model, inputs_of([[1, 3]]))
            for report in (reduction.kept, reduction.stats):
                with pytest.raises(RuntimeError, match="expected a prompt with images to have run last"):
                    report()
            generate(model, inputs_of(ROWS["one"], seed=5))
            assert not torch.equal(reduction.kept(), kept)
            generate(model, inputs_of(ROWS["one"]))
            assert torch.equal(reduction.kept(), kept)
