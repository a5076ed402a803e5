"""Changes of transformers, each simulated alone: every one ends in an error of ours, or in what the masking oracle
gives on the equally changed stock model. Never in another answer.

The table of what spoke stands in CONTRIBUTING.md too, and must be the same.
"""

import functools
import inspect
import pickle
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
import transformers.models.clip.modeling_clip as clip
import transformers.models.llama.modeling_llama as llama
import transformers.models.llava.modeling_llava as llava
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as qwen
from helpers import pictures, prompt, tiny_llava
from qwen_helpers import image, inputs_of, tiny_qwen
from transformers import cache_utils, masking_utils

import vscan
from vscan.checks import selftest
from vscan.checks.oracle import masked_logits, recorded
from vscan.compat import CACHE, ENCODED, LibraryChanged, cache_of, check

NUM_ANSWER, RTOL = 5, 2e-5


@dataclass(frozen=True)
class Family:
    """Where transformers keeps a family's parts, and a tiny model of it with a batch of unequal prompts."""

    modeling: ModuleType  # of the text model
    layer: type
    attention: type
    rotary: type
    text_model: type
    shell: type
    head: type

    def model_and_inputs(self):
        if self is FAMILIES["Qwen2.5-VL"]:
            return tiny_qwen(), inputs_of([[1, image(5, 6), 5], [1, 4, image(4, 9), 6, 7, 8]])
        model = tiny_llava(num_layers=4, vision_layers=4, side=8)
        ids, mask = prompt([[1, "image", 5], [1, 4, "image", 6, 7, 8]], 64)
        return model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(model, 2)}

    @property
    def fields(self) -> dict:
        return {"local_layer": 1, "global_layer": -2} if self is FAMILIES["LLaVA"] else {}


FAMILIES = {
    "LLaVA": Family(
        llama,
        llama.LlamaDecoderLayer,
        llama.LlamaAttention,
        llama.LlamaRotaryEmbedding,
        llama.LlamaModel,
        llava.LlavaModel,
        llava.LlavaForConditionalGeneration,
    ),
    "Qwen2.5-VL": Family(
        qwen,
        qwen.Qwen2_5_VLDecoderLayer,
        qwen.Qwen2_5_VLAttention,
        qwen.Qwen2_5_VLRotaryEmbedding,
        qwen.Qwen2_5_VLTextModel,
        qwen.Qwen2_5_VLModel,
        qwen.Qwen2_5_VLForConditionalGeneration,
    ),
}

# --------------------------------------------------------------------------------------------------------- changes
# Each takes (patch, family) and changes transformers for the length of a test.


def keyword_call(patch, cls: type, change):
    """Replace `cls.forward`: `change(original, self, keywords)`, with all arguments as keywords."""
    original, signature = cls.forward, inspect.signature(cls.forward)
    more = next((name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        bound = dict(signature.bind(self, *args, **kwargs).arguments)
        bound.pop("self")
        bound |= bound.pop(more, {}) if more else {}
        return change(original, self, bound)

    patch.setattr(cls, "forward", forward)


def renamed(function, old: str, new: str):
    """The same function under a signature in which one keyword has another name."""
    signature = inspect.signature(function)
    parameters = [p.replace(name=new) if p.name == old else p for p in signature.parameters.values()]

    def call(*args, **kwargs):
        bound = dict(call.__signature__.bind(*args, **kwargs).arguments)
        positional = [bound.pop("self")] if "self" in bound else []
        more = bound.pop("kwargs", {})
        return function(*positional, **{old if name == new else name: value for name, value in bound.items()}, **more)

    call.__signature__ = signature.replace(parameters=parameters)
    return call


def mask_builder(patch, family, builder):
    for module in (masking_utils, family.modeling):
        patch.setattr(module, "create_causal_mask", builder)


def layer_ignores_cache(patch, family):
    keyword_call(patch, family.layer, lambda f, self, kw: f(self, **{**kw, CACHE: None}))


def layer_ignores_rotary(patch, family):
    def change(forward, self, kw):
        cos, sin = kw.pop("position_embeddings")
        return forward(self, **kw, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)))

    keyword_call(patch, family.layer, change)


def layer_makes_its_own_rotary(patch, family):
    def change(forward, self, kw):
        hidden, cache = kw["hidden_states"], kw.get(CACHE)
        past = 0 if cache is None else cache.get_seq_length(self.self_attn.layer_idx)
        positions = torch.arange(hidden.shape[1]).unsqueeze(0) + past
        rotary = family.rotary(self.self_attn.config)(hidden, position_ids=positions)
        return forward(self, **{**kw, "position_embeddings": rotary})

    keyword_call(patch, family.layer, change)


def mask_ignores_padding(patch, family):
    build = masking_utils.create_causal_mask
    names = list(inspect.signature(build).parameters)

    @functools.wraps(build)
    def builder(*args, **kwargs):
        return build(**{**dict(zip(names, args, strict=False)), **kwargs, "attention_mask": None})

    mask_builder(patch, family, builder)


def mask_is_none(patch, family):
    mask_builder(patch, family, functools.wraps(masking_utils.create_causal_mask)(lambda *args, **kwargs: None))


def mask_ignores_layer(patch, family):
    build = masking_utils.create_causal_mask

    @functools.wraps(build)
    def builder(*args, layer_idx=None, **kwargs):
        return build(*args, **kwargs)

    mask_builder(patch, family, builder)


def mask_keywords_renamed(patch, family):
    mask_builder(patch, family, renamed(masking_utils.create_causal_mask, "inputs_embeds", "hidden_states"))


def rotary_ignores_positions(patch, family):
    def change(forward, self, kw):
        positions = torch.arange(kw["position_ids"].shape[-1]).expand_as(kw["position_ids"])
        return forward(self, **{**kw, "position_ids": positions})

    keyword_call(patch, family.rotary, change)


def rotary_swaps_axes(patch, family):
    def change(forward, self, kw):
        positions = kw["position_ids"]
        return forward(self, **{**kw, "position_ids": positions.flip(0) if positions.ndim == 3 else positions})

    keyword_call(patch, family.rotary, change)


def needs_encoded_pictures(family):
    if ENCODED not in inspect.signature(family.shell.forward).parameters:
        pytest.skip("this transformers encodes no pictures before the shell is called")


def encoded_keyword_renamed(patch, family):
    needs_encoded_pictures(family)
    head = family.head.forward
    patch.setattr(family.shell, "forward", renamed(family.shell.forward, ENCODED, "mm_features"))

    # generate hands features to the head, which calls the shell by the new name
    def forward(self, *args, logits_to_keep=0, **kwargs):
        kwargs["mm_features"] = kwargs.pop(ENCODED, None)
        output = self.model(*args, **kwargs)
        return type("Output", (dict,), {"__getattr__": dict.get})(
            logits=self.lm_head(output.last_hidden_state[:, -1:]), **{CACHE: cache_of(output)}
        )

    forward.__signature__ = inspect.signature(head)
    patch.setattr(family.head, "forward", forward)


def encoded_pictures_lost(patch, family):
    """generate encodes them, and the head forgets to pass them on."""
    needs_encoded_pictures(family)
    keyword_call(
        patch,
        family.head,
        lambda f, self, kw: f(self, **{name: None if name == ENCODED else value for name, value in kw.items()}),
    )


def language_model_replaced(patch, family):
    original = family.text_model.forward
    patch.setattr(family.shell, "_plain", original, raising=False)

    def change(forward, self, kw):
        language_model = self.language_model
        language_model.forward = original.__get__(language_model)
        try:
            return forward(self, **{name: value for name, value in kw.items() if name != "visual_prompt"})
        finally:
            del language_model.forward

    keyword_call(patch, family.shell, change)


def cache_keyword_renamed(patch, family):
    for cls in (family.layer, family.attention, family.text_model):
        patch.setattr(cls, "forward", renamed(cls.forward, CACHE, "kv"))


def length_is_a_tensor(patch, family):
    original = cache_utils.Cache.get_seq_length

    def get_seq_length(self, *args, **kwargs):
        return torch.tensor(original(self, *args, **kwargs))

    patch.setattr(cache_utils.Cache, "get_seq_length", get_seq_length)


def query_norm(patch, family):
    original = family.modeling.apply_rotary_pos_emb

    def apply_rotary_pos_emb(q, k, *args, **kwargs):
        q, k = (part / part.square().mean(-1, keepdim=True).sqrt() for part in (q, k))
        return original(q, k, *args, **kwargs)

    patch.setattr(family.modeling, "apply_rotary_pos_emb", apply_rotary_pos_emb)
    for cls in (family.attention, family.layer):  # kernels may have bound the function to the class
        if "rotary_fn" in vars(cls):
            patch.setattr(cls, "rotary_fn", apply_rotary_pos_emb)


def scale_in_the_attention(patch, family):
    def change(forward, self, kw):
        scaling, self.scaling = self.scaling, self.scaling * 2
        try:
            return forward(self, **kw)
        finally:
            self.scaling = scaling

    keyword_call(patch, family.attention, change)


def norm_moves_behind(patch, family):
    """The layer no longer norms what goes in, but what its attention gives."""

    def change(forward, self, kw):
        norm, self.input_layernorm = self.input_layernorm, torch.nn.Identity()
        try:
            return norm(forward(self, **kw))
        finally:
            self.input_layernorm = norm

    keyword_call(patch, family.layer, change)


def positions_not_asked_for(patch, family):
    """The shell works positions out itself, from the cache's length, and asks `compute_3d_position_ids` no more."""
    if not hasattr(family.shell, "compute_3d_position_ids"):
        pytest.skip("this family has no such function")
    compute = family.shell.compute_3d_position_ids

    def change(forward, self, kw):
        if kw.get("position_ids") is None:
            names = set(inspect.signature(compute).parameters) - {"self", "inputs_embeds"}
            embeds = self.get_input_embeddings()(kw["input_ids"])
            given = {name: kw.get(name) for name in names}
            kw["position_ids"] = compute(self, inputs_embeds=embeds, **given)
        return forward(self, **kw)

    keyword_call(patch, family.shell, change)
    patch.delattr(family.shell, "compute_3d_position_ids")


def layer_called_twice(patch, family):
    def change(forward, self, kw):
        def again(module, args, kwargs, output):
            return type(module).forward(module, output, **{**kwargs, CACHE: None})

        hook = self.layers[-1].register_forward_hook(again, with_kwargs=True)
        try:
            return forward(self, **kw)
        finally:
            hook.remove()

    keyword_call(patch, family.text_model, change)


def features_are_a_tuple(patch, family):
    original = family.shell.get_image_features

    @functools.wraps(original)
    def get_image_features(self, *args, **kwargs):
        return (original(self, *args, **kwargs).pooler_output,)

    patch.setattr(family.shell, "get_image_features", get_image_features)


def embeddings_scaled(patch, family):
    keyword_call(
        patch, family.text_model, lambda f, self, kw: f(self, **{**kw, "inputs_embeds": kw["inputs_embeds"] * 1.5})
    )


def final_norm_gone(patch, family):
    def change(forward, self, kw):
        norm, self.norm = self.norm, torch.nn.Identity()
        try:
            return forward(self, **kw)
        finally:
            self.norm = norm

    keyword_call(patch, family.text_model, change)


def shell_returns_no_cache(patch, family):
    def change(forward, self, kw):
        output = forward(self, **kw)
        output[CACHE] = None
        return output

    keyword_call(patch, family.shell, change)


def shell_makes_a_cache(patch, family):
    """It hands a new cache to the decoder, and returns that."""
    keyword_call(patch, family.shell, lambda f, self, kw: f(self, **{**kw, CACHE: cache_utils.DynamicCache()}))


def head_returns_another_cache(patch, family):
    def change(forward, self, kw):
        output = forward(self, **kw)
        output[CACHE] = cache_utils.DynamicCache()
        return output

    keyword_call(patch, family.head, change)


def cache_copied_by_generate(patch, family):
    """Every step gets a copy of the keys and values, without what hangs on the cache."""

    def change(forward, self, kw):
        output = forward(self, **kw)
        copied = cache_utils.DynamicCache()
        for index, layer in enumerate(output[CACHE].layers):
            copied.update(layer.keys, layer.values, index)
        output[CACHE] = copied
        return output

    keyword_call(patch, family.head, change)


def last_layer_shares_the_cache_of_the_first(patch, family):
    original = cache_utils.Cache.update

    def update(self, keys, values, layer_idx, *args, **kwargs):
        return original(self, keys, values, 0 if layer_idx == 1 else layer_idx, *args, **kwargs)

    patch.setattr(cache_utils.Cache, "update", update)


def step_ignores_cache(patch, family):
    def change(forward, self, kw):
        return forward(self, **{**kw, CACHE: kw.get(CACHE) if kw["hidden_states"].shape[1] > 1 else None})

    keyword_call(patch, family.layer, change)


def decoded_tokens_are_not_kept(patch, family):
    original = cache_utils.DynamicLayer.update

    def update(self, keys, values, *args, **kwargs):
        before = getattr(self, "keys", None), getattr(self, "values", None)
        found = original(self, keys, values, *args, **kwargs)
        if keys.shape[-2] == 1:
            self.keys, self.values = before
        return found

    patch.setattr(cache_utils.DynamicLayer, "update", update)


def tower_scales_embeddings(patch, family):
    keyword_call(
        patch, clip.CLIPEncoder, lambda f, self, kw: f(self, **{**kw, "inputs_embeds": 2 * kw["inputs_embeds"]})
    )


def tower_attention_scales_anew(patch, family):
    def change(forward, self, kw):
        scale, self.scale = self.scale, self.scale * 2
        try:
            return forward(self, **kw)
        finally:
            self.scale = scale

    keyword_call(patch, clip.CLIPAttention, change)


def tower_block_wants_more(patch, family):
    forward = clip.CLIPEncoderLayer.forward

    def wants_more(self, hidden_states, attention_mask, causal_attention_mask, **kwargs):
        return forward(self, hidden_states, attention_mask, **kwargs)

    patch.setattr(clip.CLIPEncoderLayer, "forward", wants_more)


SIGNATURES, SELF_TEST, TOWER = "signatures", "self-test", "self-test of the tower"
PROMPT, STEP = "after the prompt", "at a step"
SHELL, FEATURES, RIGHT = "the shell's hand-over", "encoded pictures", "the right answer"
# What an error went through -> which check that is.
CHECKS = {
    "check_signatures": SIGNATURES,
    "check_text_model": SELF_TEST,
    "check_clip_tower": TOWER,
    "check_prefill": PROMPT,
    "check_step": STEP,
    "check_dense": STEP,
    "check_handed_out": SHELL,
    "before": SHELL,
    "pooled": FEATURES,
}
# The change, in words; what it does; what speaks on LLaVA and on Qwen2.5-VL.
TABLE = [
    ("a layer ignores the cache that it is given", layer_ignores_cache, SELF_TEST, SELF_TEST),
    ("a layer ignores position_embeddings", layer_ignores_rotary, SELF_TEST, RIGHT),
    ("a layer makes rotary embeddings itself", layer_makes_its_own_rotary, SELF_TEST, SELF_TEST),
    ("create_causal_mask ignores attention_mask", mask_ignores_padding, SELF_TEST, SELF_TEST),
    ("create_causal_mask returns None", mask_is_none, SELF_TEST, SELF_TEST),
    ("create_causal_mask ignores layer_idx", mask_ignores_layer, SELF_TEST, SELF_TEST),
    ("create_causal_mask renames a keyword", mask_keywords_renamed, SIGNATURES, SIGNATURES),
    ("rotary_emb ignores position_ids", rotary_ignores_positions, SELF_TEST, SELF_TEST),
    ("rotary_emb takes its axes in another order", rotary_swaps_axes, RIGHT, RIGHT),
    ("mm_encoder_outputs is renamed", encoded_keyword_renamed, SIGNATURES, SIGNATURES),
    ("the head loses encoded pictures", encoded_pictures_lost, SHELL, SHELL),
    ("the language model's forward is replaced", language_model_replaced, SHELL, SHELL),
    ("the cache keyword is renamed once more (kv)", cache_keyword_renamed, SIGNATURES, SIGNATURES),
    ("get_seq_length gives a tensor", length_is_a_tensor, RIGHT, RIGHT),
    ("the attention gains a q-norm", query_norm, SELF_TEST, SELF_TEST),
    ("the attention scales its logits anew", scale_in_the_attention, SELF_TEST, SELF_TEST),
    ("a layer's norm moves behind its attention", norm_moves_behind, SELF_TEST, SELF_TEST),
    ("compute_3d_position_ids is no longer called", positions_not_asked_for, None, RIGHT),
    ("a layer is called twice", layer_called_twice, SELF_TEST, SELF_TEST),
    ("get_image_features returns a tuple", features_are_a_tuple, RIGHT, FEATURES),
    ("the text model scales its embeddings", embeddings_scaled, SELF_TEST, SELF_TEST),
    ("the text model loses its last norm", final_norm_gone, SELF_TEST, SELF_TEST),
    ("the shell returns no cache", shell_returns_no_cache, SHELL, SHELL),
    ("the shell makes a cache of its own", shell_makes_a_cache, SHELL, SHELL),
    ("the head returns another cache", head_returns_another_cache, STEP, STEP),
    ("generate copies the cache", cache_copied_by_generate, STEP, STEP),
    ("two layers share a cache", last_layer_shares_the_cache_of_the_first, SELF_TEST, SELF_TEST),
    ("a layer ignores its cache at a decoded token", step_ignores_cache, SELF_TEST, SELF_TEST),
    ("the cache does not keep decoded tokens", decoded_tokens_are_not_kept, SELF_TEST, SELF_TEST),
    ("CLIP's tower scales its embeddings", tower_scales_embeddings, TOWER, None),
    ("CLIP's attention scales its logits anew", tower_attention_scales_anew, TOWER, None),
    ("CLIP's blocks want another mask", tower_block_wants_more, TOWER, None),
]
# What speaks where the self-test is left out.
LATER = [(layer_ignores_cache, PROMPT), (decoded_tokens_are_not_kept, STEP)]
CASES = [
    pytest.param(change, name, expected, id=f"{name}-{change.__name__}")
    for _, change, *of_families in TABLE
    for name, expected in zip(FAMILIES, of_families, strict=True)
    if expected is not None
]


def spoke(error: Exception) -> str:
    """Which check an error came from."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    spoken = [CHECKS[name] for name in names if name in CHECKS]
    return spoken[0] if spoken[0] in (SIGNATURES, SELF_TEST, TOWER) else spoken[-1]  # those run the others, too


def outcome(family: Family) -> str:
    """Reduce a batch in a changed library: which check spoke, or whether the answer is the oracle's; else it fails."""
    model, inputs = family.model_and_inputs()
    length = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": NUM_ANSWER, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    try:
        with (
            torch.no_grad(),
            vscan.reduce(model, visual_tokens=10, layers={2: 4}, **family.fields) as reduction,
            recorded(model) as records,
        ):
            output = model.generate(**inputs, **options)
            answers = output.sequences[:, length:]
            by_hand = model(**inputs)
            mask = torch.cat((inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
            step = model(input_ids=answers[:, :1], attention_mask=mask, **{CACHE: cache_of(by_hand)}).logits[:, -1]
            stages = [row.stages for row in reduction.stats().rows]
    except (RuntimeError, ValueError) as error:
        return spoke(error)
    assert stages == [[[0, 10], [2, 4]]] * 2
    expected, (row,) = masked_logits(model, records[0], answers[:, :-1])
    tolerance = {"atol": RTOL * expected.abs().max().item(), "rtol": 0}
    torch.testing.assert_close(torch.stack(output.logits, dim=1), expected, **tolerance)
    torch.testing.assert_close(step, expected[:, 1], **tolerance)
    ranked, left = (records[0].seen(stage) & records[0].state.segments[0].prompt.visual for stage in (0, 1))
    assert (row.masked_fill(~left, 1).amin(1) >= row.masked_fill(~ranked | left, 0).amax(1)).all()
    return RIGHT


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_changed(name):
    assert outcome(FAMILIES[name]) == RIGHT


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("change", "expected"), LATER)
def test_what_the_self_test_would_have_found_is_found_at_run_time_too(monkeypatch, change, name, expected):
    monkeypatch.setenv("VSCAN_SELFTEST", "0")
    change(monkeypatch, FAMILIES[name])
    assert outcome(FAMILIES[name]) == expected


def test_the_table_stands_in_contributing():
    text = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
    for change, _, *spoke_up in TABLE:
        cells = " | ".join("-" if check is None else check for check in spoke_up)
        assert f"| {change} | {cells} |" in text.splitlines()


def test_a_message_names_the_version_and_survives_a_process():
    error = pickle.loads(pickle.dumps(LibraryChanged("5 columns", "0")))
    assert str(error).startswith(f"expected 5 columns, got 0: transformers {transformers.__version__} does not do what")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_self_test_runs_once_and_draws_no_random_number(monkeypatch, name):
    model, _ = FAMILIES[name].model_and_inputs()
    runs = []
    monkeypatch.setattr(selftest, "_passed", set())
    monkeypatch.setattr(selftest._Trial, "run", lambda self: runs.append(self))
    before = torch.get_rng_state()
    monkeypatch.setenv("VSCAN_SELFTEST", "0")
    check(model)
    assert len(runs) == 0
    monkeypatch.delenv("VSCAN_SELFTEST")
    check(model)
    check(model)
    assert len(runs) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("change", "name", "expected"), CASES)
def test_a_change_ends_in_our_error_or_in_the_right_answer(monkeypatch, change, name, expected):
    change(monkeypatch, FAMILIES[name])
    assert outcome(FAMILIES[name]) == expected
