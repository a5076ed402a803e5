"""Prompts of one shape as recorded graphs, on every model; on a CPU the same functions run again on their buffers."""

import copy

import pytest
import torch
from contracts.families import FAMILIES, NUM_LAYERS, ROWS
from contracts.test_family import anatomy, answers, generate, kept_of, logits_of, settings_of
from helpers import close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vscan
from vscan.capture.capture import Capture
from vscan.capture.recorder import EagerRecorder
from vscan.compat import CACHE, cache_of
from vscan.methods import method_class
from vscan.methods.vscan import VScan

every_rows = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


class Counting(EagerRecorder):
    """Counts: what it is asked to record, and what is replayed."""

    def __init__(self):
        self.recorded, self.replayed = [], []

    def record(self, function):
        self.recorded.append(function)
        function()

        def replay():
            self.replayed.append(function)
            function()

        return replay


@pytest.fixture(params=[name for name in FAMILIES if "video" not in name])
def family(request):
    return FAMILIES[request.param]


def counted(reduction) -> Counting:
    """A recorder that counts, in a reduction that has not recorded yet."""
    reduction.capture = Capture(reduction, 2**30, lambda device: recorder)
    recorder = Counting()
    return recorder


def equal(found, expected) -> None:
    assert torch.equal(answers(found), answers(expected))
    close(logits_of(found), logits_of(expected), 2e-5)


def same_as_eager(family, rows, settings=None, side="left", times=2):
    """Generate with and without; returns the captured reduction."""
    model, settings = family.model, family.settings if settings is None else settings
    inputs = family.inputs(model, rows, side)
    with vscan.reduce(model, **settings) as reduction:
        expected, kept, stats = generate(model, inputs), kept_of(reduction), reduction.stats()
    with vscan.reduce(model, capture=True, **settings) as reduction:
        for _ in range(times):
            equal(generate(model, inputs), expected)
            assert kept_of(reduction) == kept
            assert reduction.stats().rows == stats.rows
    return reduction


@every_rows
def test_answers_are_those_of_the_eager_way(family, rows):
    assert same_as_eager(family, rows).last.captured


@pytest.mark.parametrize(
    "stages",
    [{"layers": {}}, {"visual_tokens": None}, {"visual_tokens": 1.0, "layers": {}}, {"layers": {0: 5}}],
    ids=str,
)
def test_of_one_stage_alone_and_of_none(family, stages):
    if "layers" in stages and family.budgets["visual_tokens"] == 0.5 and stages["layers"]:
        stages = {"layers": {0: 3}}
    last = same_as_eager(family, ROWS["unequal"], {**family.settings, **stages}).last
    assert last.captured
    packs = family is FAMILIES["llava_next"] and stages.get("visual_tokens", 20) in (None, 1.0)
    assert (last.eager is not None) == packs


def test_padding_on_the_right_keeps_the_same_tokens(family):
    """Whose last column is padding answers from that, eagerly too; the longest item has none."""
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"], "right")
    with vscan.reduce(model, **family.settings) as reduction:
        expected, kept = generate(model, inputs, max_new_tokens=1), kept_of(reduction)
        last = reduction.last.segments[-1]
    whole = [row for row in range(4) if last.valid[row, -1]]
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        found = generate(model, inputs, max_new_tokens=1)
        assert kept_of(reduction) == kept
        assert reduction.last.captured
    assert whole
    close(logits_of(found)[whole], logits_of(expected)[whole], 2e-5)


@pytest.mark.parametrize("name", [*vscan.METHODS, "sparsevlm 2.0"])
def test_by_every_method(family, name):
    name, _, release = name.partition(" ")
    if method_class(name)().needs.cls and not family.has_cls:
        pytest.skip("refused on this model")
    settings = settings_of(family, name) | ({"release": release} if release else {})
    last = same_as_eager(family, ROWS["unequal"], settings).last
    assert last.captured
    shares_out = name == "hired" and family.unpads
    packs = family is FAMILIES["llava_next"] and "visual_tokens" not in settings
    reads_text = name in ("cdpruner", "mmtok", "eadp")
    assert (last.eager is not None) == (shares_out or packs or reads_text)


def test_prompt_after_prompt_of_other_lengths(family):
    """Longer and shorter ones of one bucket, and of several, in turns; nothing of one is left in another."""
    model = family.model
    prompts = [
        *([[1, *range(3, 3 + number), "wide", 5]] for number in (1, 20, 4, 40, 2)),
        [[1, "tall", 4], [1, 5, "tall", *range(3, 12)]],
        [[1, "wide", 5]],
        [[1, "tall", *range(3, 30)], [1, "tall", 7]],
    ]
    with vscan.reduce(model, **family.settings) as reduction:
        expected = [(generate(model, family.inputs(model, rows)), kept_of(reduction)) for rows in prompts]
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        recorder = counted(reduction)
        for rows, (output, kept) in zip(prompts * 2, expected * 2, strict=True):
            equal(generate(model, family.inputs(model, rows)), output)
            assert kept_of(reduction) == kept
            assert reduction.last.captured
        once = len(recorder.recorded)
        assert once < len(recorder.replayed)


READING = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


def test_three_prompts_of_a_bucket_are_one_recording_and_two_replays_on_the_same_buffers(monkeypatch):
    """Every input, output and cache buffer stays where it is, and inside a region nothing is read on the host."""
    family = FAMILIES["llava"]
    model, inside, reads = family.model, [False], []
    for name in READING:
        original = getattr(Tensor, name)

        def read(self, *args, original=original, name=name, **kwargs):
            if inside[0]:
                reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, read)

    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        recorder = counted(reduction)
        record = recorder.record

        def watched(function):
            def region():
                inside[0] = True
                try:
                    function()
                finally:
                    inside[0] = False

            return record(region)

        recorder.record = watched
        places = []
        for text in ([5], [6, 7, 8], [9, 5, 4, 3, 8]):
            generate(model, family.inputs(model, [[1, "wide", *text], [1, 4, "tall", 7]]))
            regions = reduction.capture.regions.values()
            places.append([{name: part.data_ptr() for name, part in region.buffers.items()} for region in regions])
            assert len(recorder.recorded) == 3  # encode, prefill, step
        steps = 3
        assert len(recorder.replayed) == 2 + 2 + (3 * steps - 1)
        assert reads == []
    assert places[0] == places[1] == places[2]
    names = {name for of_region in places[0] for name in of_region}
    assert names >= {"pixels", "hidden", "token", "prefill 0", "step 0", "out 0"}
    assert names >= {f"{part} {layer}" for part in ("keys", "values", "length") for layer in range(NUM_LAYERS)}


class Watched(TorchDispatchMode):
    """Notes what a recording on a GPU must not do: read a number, ask how many there are, bring one from the host."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "lift_fresh", "equal", "unique")

    def __init__(self, seen: list):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name.startswith(self.FORBIDDEN):
            self.seen.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*vscan.METHODS, "sparsevlm 2.0"])
def test_nothing_is_read_or_brought_from_the_host_by_any_method(family, name):
    """In what is recorded, which runs after the first time; that makes the tables that others read."""
    name, _, release = name.partition(" ")
    if method_class(name)().needs.cls and not family.has_cls:
        pytest.skip("refused on this model")
    settings = settings_of(family, name) | ({"release": release} if release else {})
    model, inputs, seen = family.model, family.inputs(family.model, ROWS["unequal"]), []

    class Recording(EagerRecorder):
        def record(self, function):
            function()

            def replay():
                with Watched(seen):
                    function()

            replay()
            return replay

    with vscan.reduce(model, capture=True, **settings) as reduction:
        reduction.capture = Capture(reduction, 2**30, lambda device: Recording())
        for _ in range(2):
            generate(model, inputs)
        assert reduction.last.captured
    assert seen == []


def test_the_regions_run_where_nothing_can_be_read():
    """On meta tensors, which hold no data, a read raises."""
    family = FAMILIES["llava"]
    model, inputs = copy.deepcopy(family.model).to("meta"), family.inputs(family.model, ROWS["unequal"])
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        from vscan.capture.buckets import Bucket
        from vscan.capture.regions import EncodeRegion, PromptRegions

        pixels, text = inputs["pixel_values"].to("meta"), model.model.language_model
        device = pixels.device
        batch = inputs["input_ids"].shape[0]
        encode = EncodeRegion(
            EagerRecorder(),
            lambda given: reduction.family.reduced(reduction, "image", {"pixel_values": given}),
            pixels,
        )
        assert [tuple(part.shape) for part in encode.region.outputs] == [(4, 64, 32), (4, 64), ()]
        numbers = [(1, 1, 0, 2), (64, 64, 0, 128), (20, 20, 0, 40)]
        bucket = Bucket(*numbers, True, 32, 160, 64, 0, 32, torch.float32, device)
        regions = PromptRegions(EagerRecorder(), text, bucket)
        regions.run_prefill()
        assert regions.run_step().shape == (batch, 1, 32)


def test_two_models_and_two_reductions_share_nothing(family):
    models = [family.model, copy.deepcopy(family.model)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.01)
    inputs, expected = family.inputs(models[0], ROWS["one"]), []
    for model in models:
        with vscan.reduce(model, **family.settings):
            expected.append(generate(model, inputs))
    handles = [vscan.apply(model, capture=True, **family.settings) for model in models]
    try:
        for _ in range(2):
            for model, output in zip(models, expected, strict=True):
                equal(generate(model, inputs), output)
        parts = [
            {
                part.untyped_storage().data_ptr()
                for region in handle.capture.regions.values()
                for part in region.buffers.values()
            }
            for handle in handles
        ]
        assert all(parts)
        assert not parts[0] & parts[1]
    finally:
        for handle in handles:
            handle.remove()


def test_it_is_undone_and_lets_its_memory_go(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    dense, before = generate(model, inputs), anatomy(model)
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        generate(model, inputs)
        assert reduction.capture.num_bytes > 0
    assert reduction.capture.num_bytes == 0
    assert anatomy(model) == before
    output = generate(model, inputs)
    assert torch.equal(output.sequences, dense.sequences)
    assert torch.equal(logits_of(output), logits_of(dense))


@pytest.mark.parametrize("where", ["encode", "scores"])
@pytest.mark.parametrize("first", [True, False])
def test_an_error_inside_leaves_nothing_behind(monkeypatch, family, where, first):
    """In a recording, or in a replay that runs the function again: what comes next is as if it had not been."""
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    with vscan.reduce(model, **family.settings):
        expected = generate(model, inputs)
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        if not first:
            generate(model, inputs)
        number = len(reduction.capture.regions)
        original = getattr(VScan, where)

        def fails(*args):
            raise KeyError(where)

        monkeypatch.setattr(VScan, where, fails)
        with pytest.raises(KeyError):
            generate(model, inputs)
        assert len(reduction.capture.regions) == (number if where == "encode" or not first else 1)
        monkeypatch.setattr(VScan, where, original)
        for _ in range(2):
            equal(generate(model, inputs), expected)
            assert reduction.last.captured


OTHER_WAYS = {
    "beams reorder the cache": {"num_beams": 2},
    "use_cache=False": {"use_cache": False},
    "output_hidden_states=True": {"output_hidden_states": True},
    "output_attentions=True": {"output_attentions": True},
    "cache_implementation='static'": {"cache_implementation": "static", "disable_compile": True},
    "prompt and answer are longer than the model's context": {"max_new_tokens": 2100, "max_time": 0.001},
}


@pytest.mark.parametrize("reason", OTHER_WAYS)
def test_what_fits_no_bucket_runs_eagerly_and_says_so(family, reason):
    model, inputs, options = family.model, family.inputs(family.model, ROWS["one"]), OTHER_WAYS[reason]
    if "longer" in reason:
        most = model.config.get_text_config(decoder=True).max_position_embeddings
        options = {**options, "max_new_tokens": most}
    if "attentions" in reason:
        model = copy.deepcopy(model)
        model.set_attn_implementation("eager")
    with vscan.reduce(model, **family.settings):
        expected = generate(model, inputs, **options)
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        found = generate(model, inputs, **options)
        stats = reduction.stats()
        assert (stats.captured, stats.eager) == (False, reason)
        assert f"not captured: {reason}" in str(stats)
        length = min(found.sequences.shape[1], expected.sequences.shape[1])
        assert torch.equal(found.sequences[:, :length], expected.sequences[:, :length])
        generate(model, inputs)
        assert reduction.stats().captured
        assert str(reduction.stats()).endswith("\n  captured")


def test_a_forward_of_the_callers_own_and_one_with_gradients_run_eagerly(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])
    with vscan.reduce(model, **family.settings):
        expected = model(**inputs).logits
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        assert torch.equal(model(**inputs).logits, expected)
        assert reduction.stats().eager == "it ran outside generate"
        with torch.enable_grad():
            assert model(**inputs).logits.requires_grad


def test_a_second_prompt_in_flight_runs_eagerly(family):
    """One that begins between two tokens of another: both are answered as they are alone."""
    model = family.model
    outer, inner = (family.inputs(model, rows) for rows in ([[1, "wide", 5]], [[1, "wide", 9, 4]]))
    with vscan.reduce(model, **family.settings):
        expected = generate(model, outer), generate(model, inner)
    found = []
    with vscan.reduce(model, capture=True, **family.settings) as reduction:

        def between(ids, scores):
            if len(found) < 2:
                found.append(None)
                found[-1] = generate(model, inner), reduction.last.eager
            return scores

        output = generate(model, outer, logits_processor=[between])
        equal(output, expected[0])
        for answer, reason in found:
            equal(answer, expected[1])
            assert reason == "another prompt is in flight"
        equal(generate(model, inner), expected[1])
        assert reduction.last.captured


def test_a_cache_that_comes_back_is_read_until_the_next_prompt_and_refused_elsewhere(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        cache = cache_of(generate(model, inputs))
        assert cache.get_seq_length(0) > cache.get_seq_length(NUM_LAYERS - 1)
        assert cache.layers[0].keys.shape[2] >= cache.get_seq_length(0)
        token = torch.ones(1, 1, dtype=torch.long)
        for call in (lambda: model(input_ids=token, **{CACHE: cache}), lambda: copy.deepcopy(cache), cache.reset):
            with pytest.raises(ValueError, match="expected the cache of a captured prompt to be carried on by its own"):
                call()
        generate(model, inputs)
        assert cache.layers[0].keys.shape[2] == 0
        assert reduction.last.captured
    with pytest.raises(ValueError):  # noqa: PT011 (transformers', or ours)
        model(input_ids=token, **{CACHE: cache})


def test_recordings_stay_within_their_bytes(family):
    """The least recently used leave; what is too large alone runs eagerly."""
    model = family.model
    prompts = [family.inputs(model, [[1, *range(3, 3 + number), "wide"]]) for number in (2, 40, 75)]
    with vscan.reduce(model, **family.settings):
        expected = [generate(model, inputs) for inputs in prompts]
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        for inputs in prompts:
            generate(model, inputs)
        one = max(region.num_bytes for region in reduction.capture.regions.values())
        most = reduction.capture.num_bytes - one // 2
    with vscan.reduce(model, capture=True, capture_bytes=most, **family.settings) as reduction:
        for _ in range(2):
            for inputs, output in zip(prompts, expected, strict=True):
                equal(generate(model, inputs), output)
                assert reduction.last.captured
                assert reduction.capture.num_bytes <= most
    with vscan.reduce(model, capture=True, capture_bytes=100, **family.settings) as reduction:
        equal(generate(model, prompts[0]), expected[0])
        assert "more than capture_bytes=100" in reduction.stats().eager
        assert reduction.capture.num_bytes == 0


class Doubled(nn.Module):
    """Stands in for an adapter: a layer beside it, and whether it is merged."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.merged = layer, False

    def forward(self, states):
        return self.layer(states) if self.merged else 2 * self.layer(states)


Doubled.__module__ = "adapters"


def replaced(model, layer):
    layer.mlp.up_proj = Doubled(layer.mlp.up_proj).eval()


def merged(model, layer):
    layer.mlp.up_proj.merged = True


def scaled(model, layer):
    layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data * 1.5


def in_place(model, layer):
    layer.mlp.down_proj.weight.data.mul_(1.5)


def test_a_model_that_changed_is_recorded_anew(family):
    """Weights that moved, modules in place of others, an adapter that is merged: never the old answer."""
    model, inputs = copy.deepcopy(family.model), family.inputs(family.model, ROWS["one"])
    other = copy.deepcopy(model)
    layers = [each.base_model.layers if hasattr(each.base_model, "layers") else each.base_model.language_model.layers
              for each in (model, other)]  # fmt: skip
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        recorder = counted(reduction)
        before = generate(model, inputs)
        for change in (replaced, merged, scaled, in_place):
            for each, of_each in zip((model, other), layers, strict=True):
                change(each, of_each[2])
            with vscan.reduce(other, **family.settings):
                expected = generate(other, inputs)
            assert not torch.equal(logits_of(expected), logits_of(before))
            number = len(recorder.recorded)
            for _ in range(2):
                equal(generate(model, inputs), expected)
                assert reduction.last.captured
            assert (len(recorder.recorded) > number) == (change is not in_place)
            before = expected


def test_a_hook_and_a_model_in_training_run_eagerly(family):
    model, inputs, seen = copy.deepcopy(family.model), family.inputs(family.model, ROWS["one"]), []
    text = model.base_model if hasattr(model.base_model, "layers") else model.base_model.language_model
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        expected = generate(model, inputs)
        hook = text.layers[1].register_forward_hook(lambda *args: seen.append(1))
        equal(generate(model, inputs), expected)
        assert (len(seen), reduction.last.eager) == (4, "a hook watches a module of the model")
        hook.remove()
        equal(generate(model, inputs), expected)
        assert (len(seen), reduction.last.captured) == (4, True)
        text.train()
        generate(model, inputs)
        assert reduction.last.eager == "the model is in training mode"


def test_what_depends_on_the_picture_beyond_a_bound_runs_eagerly():
    """On LLaVA-NeXT a count is the same for all pictures, a share is not."""
    family = FAMILIES["llava_next"]
    last = same_as_eager(family, ROWS["one"], {**family.settings, "layers": {1: 0.5}}).last
    assert (last.captured, last.eager) == (False, "what layer 1 keeps depends on the picture")


def test_sampling_several_answers_of_a_prompt(family):
    """The same numbers are drawn: sampling is outside of what is recorded."""
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])

    def sampled():
        torch.manual_seed(3)
        return generate(model, inputs, do_sample=True, temperature=1.0, num_return_sequences=3)

    with vscan.reduce(model, **family.settings):
        expected = sampled()
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        for _ in range(2):
            equal(sampled(), expected)
            assert reduction.last.captured


def test_an_answer_that_is_longer_than_a_bucket_has_room_is_another_bucket(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])
    with vscan.reduce(model, **family.settings):
        expected = generate(model, inputs, max_new_tokens=70).sequences
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        for number in (70, 3, 70):
            found = generate(model, inputs, max_new_tokens=number).sequences
            assert torch.equal(found, expected[:, : expected.shape[1] - 70 + number])
            assert reduction.last.captured


def test_text_is_answered_as_ever(family):
    model, inputs = family.model, family.inputs(family.model, [[1, 4, 9, 6]])
    expected = generate(model, inputs)
    with vscan.reduce(model, capture=True, **family.settings):
        assert torch.equal(logits_of(generate(model, inputs)), logits_of(expected))


def test_an_inference_and_no_grad_serve_each_other(family):
    model, inputs = family.model, family.inputs(family.model, ROWS["one"])
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        with torch.inference_mode():
            found = generate(model, inputs)
        equal(generate(model, inputs), found)
        with torch.inference_mode():
            equal(generate(model, inputs), found)
        assert reduction.last.captured


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"capture": 1}, "capture: expected True or False, got 1"),
        ({"capture": True, "capture_bytes": 0}, "capture_bytes: expected an int of at least 1, got 0"),
        ({"capture": True, "capture_bytes": 1.5}, "capture_bytes: expected an int of at least 1, got 1.5"),
    ],
)
def test_what_is_neither_is_refused(given, message):
    family = FAMILIES["llava"]
    with pytest.raises(ValueError, match=message):
        vscan.apply(family.model, **given, **family.settings)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_rows
def test_recorded_graphs_answer_as_the_eager_way_on_a_gpu(family, rows, dtype):
    """In bfloat16 other kernels may round otherwise where attention is masked: logits then, of the first token."""
    model = copy.deepcopy(family.model).to("cuda", dtype)
    inputs = {
        name: part.cuda() if isinstance(part, Tensor) else part
        for name, part in family.inputs(family.model, rows).items()
    }
    pixels = [name for name in inputs if name in ("pixel_values", "images")]
    for name in pixels:
        moved = inputs[name]
        inputs[name] = [part.to("cuda", dtype) for part in moved] if isinstance(moved, list) else moved.to(dtype)
    with vscan.reduce(model, **family.settings) as reduction:
        expected, kept = generate(model, inputs), kept_of(reduction)
    with vscan.reduce(model, capture=True, **family.settings) as reduction:
        for _ in range(3):
            found = generate(model, inputs)
            assert (reduction.last.captured, reduction.last.eager) == (True, None)
            if dtype == torch.float32:
                assert torch.equal(answers(found), answers(expected))
                assert kept_of(reduction) == kept
                close(logits_of(found), logits_of(expected), 1e-3)
            else:
                close(logits_of(found)[:, 0], logits_of(expected)[:, 0], 5e-2)


@pytest.mark.parametrize("name", ["video_llava", "original_video"])
def test_a_model_that_sees_clips_runs_eagerly_and_says_so(name):
    family = FAMILIES[name]
    model, inputs = family.model, family.inputs(family.model, ROWS["unequal"])
    with vscan.reduce(model, **family.settings):
        expected = generate(model, inputs)
    with vscan.reduce(model, **family.settings, capture=True) as reduction:
        equal(generate(model, inputs), expected)
        assert not reduction.stats().captured
        assert "the model sees clips" in reduction.stats().eager
