"""What outlives its reduction, or is made a copy of: it works, or is refused in one sentence."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from helpers import pictures, prompt, tiny_llava, tiny_next
from qwen_helpers import image, inputs_of, tiny_qwen
from transformers import DynamicCache, StaticCache

import vscan
from vscan.compat import CACHE, cache_of

LLAVA = {"local_layer": 1, "global_layer": -2}
STAGES = {"encoder": {"visual_tokens": 10}, "both": {"visual_tokens": 10, "layers": {2: 4}}}
every_stage = pytest.mark.parametrize("stages", STAGES)


@pytest.fixture(scope="module", params=["llava", "qwen"])
def case(request):
    """A model, a batch of two prompts of unequal length, and the method's fields."""
    if request.param == "qwen":
        return tiny_qwen(), inputs_of([[1, image(5, 6), 5], [1, 4, image(4, 9), 6, 7]]), {}
    model = tiny_llava(num_layers=4, vision_layers=4, side=8)
    ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, 7]], 64)
    return model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}, LLAVA


def step(model, inputs, cache, rows=slice(None)):
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
    tokens = torch.tensor([[5], [6]])
    with torch.no_grad():
        return model(input_ids=tokens[rows], attention_mask=mask[rows], **{CACHE: cache}).logits


def filled(model, inputs):
    with torch.no_grad():
        return cache_of(model(**inputs))


@every_stage
def test_a_cache_is_refused_after_its_reduction(case, stages):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES[stages], **fields):
        cache = filled(model, inputs)
    with pytest.raises(ValueError, match="got one that holds a prompt with reduced visual tokens, whose reduction was"):
        step(model, inputs, cache)
    with (
        vscan.reduce(model, **STAGES[stages], **fields),
        pytest.raises(ValueError, match="whose reduction was removed"),
    ):
        step(model, inputs, cache)
    plain = DynamicCache()
    plain.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0)
    plain.reset()
    if plain.get_seq_length():
        with pytest.raises(ValueError, match="expected a static cache to reset, got a dynamic one, whose columns"):
            cache.reset()
        with pytest.raises(ValueError, match="got one that holds a prompt with reduced visual tokens, which was reset"):
            step(model, inputs, cache)
        return
    cache.reset()
    assert type(cache) is DynamicCache
    with torch.no_grad():
        assert torch.equal(model(**inputs, **{CACHE: cache}).logits, model(**inputs).logits)


def test_a_cache_of_another_model_s_reduction_is_refused():
    (model, other), (ids, mask) = (tiny_llava(side=8) for _ in range(2)), prompt([[1, "image", 5]] * 2, 64)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}
    with vscan.reduce(model, **STAGES["both"], **LLAVA), vscan.reduce(other, **STAGES["both"], **LLAVA):
        cache = filled(other, inputs)
        with pytest.raises(
            ValueError, match="cache of this reduction's own, got one that another reduction has filled"
        ):
            step(model, inputs, cache)


@every_stage
def test_a_static_cache_is_refused_after_its_reduction(case, stages):
    model, inputs, fields = case
    cache = StaticCache(config=model.config.text_config, max_cache_len=150)
    with vscan.reduce(model, **STAGES[stages], **fields), torch.no_grad():
        model(**inputs, **{CACHE: cache})
    with pytest.raises(ValueError, match="whose reduction was removed"):
        step(model, inputs, cache)


@every_stage
def test_keys_and_values_that_were_moved_into_another_cache_are_refused(case, stages):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES[stages], **fields):
        cache, moved = filled(model, inputs), DynamicCache()
        for index, layer in enumerate(cache.layers):
            moved.update(layer.keys, layer.values, index)
        with pytest.raises(ValueError, match="expected a cache that was filled under this reduction"):
            step(model, inputs, moved)


def test_a_text_prompt_goes_on_from_its_cache(case):
    model, _, fields = case
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None  # transformers keeps those of the last prompt, which had other rows
    text = {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    more = {"input_ids": torch.tensor([[7]])}
    with torch.no_grad():
        expected = model(**more, **{CACHE: cache_of(model(**text))}).logits
        with vscan.reduce(model, **STAGES["both"], **fields):
            assert torch.equal(model(**more, **{CACHE: cache_of(model(**text))}).logits, expected)


@every_stage
def test_what_is_known_of_a_prompt_follows_the_rows_of_its_cache(case, stages):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES[stages], **fields):
        expected = step(model, inputs, filled(model, inputs))
        turned = filled(model, inputs)
        turned.reorder_cache(torch.tensor([1, 0]))
        swapped = {**inputs, "attention_mask": inputs["attention_mask"].flip(0)}
        with torch.no_grad():
            mask = torch.cat((swapped["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
            found = model(input_ids=torch.tensor([[6], [5]]), attention_mask=mask, **{CACHE: turned}).logits
        torch.testing.assert_close(found, expected.flip(0), atol=1e-5, rtol=0)
        for row in range(2):
            selected = filled(model, inputs)
            selected.batch_select_indices(torch.tensor([row]))
            found = step(model, inputs, selected, slice(row, row + 1))
            torch.testing.assert_close(found, expected[row : row + 1], atol=1e-5, rtol=0)


@every_stage
def test_rows_may_be_repeated(case, stages):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES[stages], **fields), torch.no_grad():
        expected = step(model, inputs, filled(model, inputs))
        cache = filled(model, inputs)
        cache.batch_repeat_interleave(2)
        mask = torch.cat((inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1).repeat_interleave(2, 0)
        found = model(input_ids=torch.tensor([[5], [5], [6], [6]]), attention_mask=mask, **{CACHE: cache}).logits
    torch.testing.assert_close(found, expected.repeat_interleave(2, 0), atol=1e-5, rtol=0)


@every_stage
def test_a_copy_of_a_cache_goes_on_by_itself(case, stages):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES[stages], **fields):
        cache = filled(model, inputs)
        copied = copy.deepcopy(cache)
        expected = step(model, inputs, cache)
        assert torch.equal(step(model, inputs, copied), expected)
    with pytest.raises(ValueError, match="whose reduction was removed"):
        step(model, inputs, copied)
    with pytest.raises(ValueError, match="got one that holds a reduced prompt"):
        pickle.dumps(cache)


def test_a_crop_takes_what_was_decoded_and_no_part_of_the_prompt(case):
    model, inputs, fields = case
    with vscan.reduce(model, **STAGES["both"], **fields):
        cache = filled(model, inputs)
        expected = step(model, inputs, cache)
        cache.crop(-1)
        assert torch.equal(step(model, inputs, cache), expected)
        cache.crop(-1)
        with pytest.raises(ValueError, match="expected to crop nothing but what was decoded after a reduced prompt"):
            cache.crop(-1)
        for _ in range(2):
            with pytest.raises(ValueError, match="got one that holds a prompt with reduced visual tokens, which was"):
                step(model, inputs, cache)


def test_a_static_cache_is_cropped_likewise(case):
    model, inputs, fields = case
    cache = StaticCache(config=model.config.text_config, max_cache_len=150)
    if not hasattr(cache.layers[0], "crop"):
        pytest.skip("this transformers crops no static cache")
    with vscan.reduce(model, **STAGES["both"], **fields), torch.no_grad():
        model(**inputs, **{CACHE: cache})
        step(model, inputs, cache)
        cache.crop(-1)
        with pytest.raises(ValueError, match="expected to crop nothing but what was decoded after a reduced prompt"):
            cache.crop(-1)


def test_statistics_keep_no_cache_alive(case):
    model, inputs, fields = case
    gc.disable()
    try:
        with vscan.reduce(model, **STAGES["both"], **fields) as reduction:
            cache = weakref.ref(filled(model, inputs))
            assert cache() is None
            assert reduction.stats().cache_bytes > 0
    finally:
        gc.enable()


def test_bytes_of_a_quantized_cache_are_not_made_up(case):
    model, inputs, fields = case

    class Packed(DynamicCache):
        """Keeps what it got in another form, and the last column as it is."""

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return self.num_columns.get(layer_idx, 0)

        def update(self, keys, values, layer_idx, *args, **kwargs):
            found = super().update(keys, values, layer_idx, *args, **kwargs)
            self.num_columns[layer_idx], layer = self.get_seq_length(layer_idx) + keys.shape[-2], self.layers[layer_idx]
            layer.keys, layer.values = layer.keys[..., -1:, :], layer.values[..., -1:, :]
            return found

    cache = Packed()
    cache.num_columns = {}
    with vscan.reduce(model, **STAGES["both"], **fields) as reduction, torch.no_grad():
        model(**inputs, **{CACHE: cache})
    stats = reduction.stats()
    assert stats.cache_lengths == list(cache.num_columns.values())
    assert (stats.cache_bytes, stats.cache_dtype) == (None, "None")
    assert "(in a form whose size cannot be told)" in str(stats)


def test_a_reduced_model_is_not_copied_or_pickled(case):
    model, inputs, fields = case
    with torch.no_grad():
        dense = model(**inputs).logits
    parts = (model, model.base_model, model.base_model.language_model)
    with vscan.reduce(model, **STAGES["both"], **fields):
        for part in (*parts, [model], {"model": model}):
            for action in (copy.deepcopy, pickle.dumps, lambda part: torch.save(part, io.BytesIO())):
                with pytest.raises(ValueError, match="expected a dense model to copy or to pickle"):
                    action(part)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, dense)
    assert not any("__deepcopy__" in vars(part) for part in parts)


def test_the_original_format_is_not_copied_either_and_a_stale_handle_removes_nothing(checkpoint):
    from llava.model.builder import load_pretrained_model

    _, model, _, _ = load_pretrained_model(str(checkpoint), device="cpu", dtype="float32")
    first = vscan.apply(model, visual_tokens=96)
    with pytest.raises(ValueError, match="expected a dense model to copy"):
        copy.deepcopy(model)
    first.remove()
    second = vscan.apply(model, visual_tokens=64)
    first.remove()
    assert model.model.reduction is second
    second.remove()
    assert model.model.reduction is None


def test_a_stale_handle_removes_nothing(case):
    model, inputs, fields = case
    first = vscan.apply(model, visual_tokens=10, **fields)
    first.remove()
    with vscan.reduce(model, visual_tokens=5, **fields) as second:
        first.remove()
        filled(model, inputs)
        assert second.stats().rows[0].stages == [[0, 5]]


def test_one_object_serves_several_with_blocks(case):
    model, inputs, fields = case
    reducing = vscan.reduce(model, visual_tokens=10, **fields)
    for _ in range(2):
        with reducing as reduction:
            filled(model, inputs)
            assert reduction.stats().rows[0].stages == [[0, 10]]
    with reducing, pytest.raises(ValueError, match="reduced already"), reducing:
        pass


def test_another_thread_gets_the_reduction_too_as_its_documentation_says(case):
    model, inputs, fields = case
    lengths = []
    with vscan.reduce(model, **STAGES["both"], **fields):
        thread = threading.Thread(target=lambda: lengths.append(filled(model, inputs).get_seq_length(3)))
        thread.start()
        thread.join()
    assert lengths[0] < 20
    assert "every thread" in " ".join(vscan.reduce.__doc__.split())


def test_pictures_that_a_prompt_names_must_come(case):
    model, inputs, fields = case
    bare = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    number = int((inputs["input_ids"] == model.config.image_token_id).sum())
    with vscan.reduce(model, **STAGES["both"], **fields):
        for call in (model, lambda **given: model.generate(**given, max_new_tokens=2)):
            with pytest.raises(ValueError, match=f"expected pixel_values for the {number} image tokens"):
                call(**bare)
        with pytest.raises(ValueError, match="expected generate while visual tokens are reduced, got generate_batch"):
            model.generate_batch([[1, 2]])


def test_pixels_of_no_picture_are_none():
    model = tiny_next()  # the one kind that takes them when it is dense
    text = {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    text |= {"pixel_values": torch.empty(0, 3, 3, 32, 32), "image_sizes": torch.empty(0, 2, dtype=torch.long)}
    with torch.no_grad():
        expected = model(**text).logits
        with vscan.reduce(model, visual_tokens=10, layers={2: 4}, local_layer=1):
            assert torch.equal(model(**text).logits, expected)


def test_what_follows_an_item_of_one_token_is_numbered_from_its_token(case):
    model, inputs, fields = case
    if not fields:
        pytest.skip("a shell with M-RoPE works its positions out")
    ids, mask = prompt([[1, "image", 5], [9]], 64)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)  # as generate has them
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": inputs["pixel_values"][:1]}
    with vscan.reduce(model, **STAGES["both"], **fields) as reduction, torch.no_grad():
        model(**given, position_ids=positions)
        assert reduction.last.next_position.tolist() == [[66], [1]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"visual_tokens": 10**9},
            "visual_tokens: expected at most the {most} visual tokens .*, got 1000000000",
        ),
        ({"visual_tokens": 10, "layers": {2: 20}}, "layers: layer 2: expected at most the 10 visual tokens .*, got 20"),
        (
            {"layers": {1: 5, 2: 6}},
            "layers: layer 2: expected at most the 5 visual tokens .*, got 6",
        ),
    ],
)
def test_a_count_above_what_arrives_is_refused_with_both_numbers(case, asked, message):
    model, _, fields = case
    most = 64 if fields else model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=message.format(most=most)):
        vscan.apply(model, **asked, **fields)
