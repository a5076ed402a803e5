"""Attention rows against those that transformers' eager attention gives, and against a slow float64 loop."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vscan.select.attention import attention_rows, cls_row, device_of, prompt_rows, rotate, split_heads

quick = settings(deadline=None, derandomize=True)
NUM_LAYERS = 4


def randomise(model: nn.Module) -> nn.Module:
    """Weights large enough for attention to be far from uniform; norms and biases as well."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        centre, spread = (1.0, 0.3) if "norm" in name and name.endswith("weight") else (0.0, 0.3)
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def random_states(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


# -------------------------------------------------------------------------------------------------- one CLIP layer


@pytest.fixture(scope="module")
def tower():
    """A CLIP tower with a grid of 5 x 5."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        image_size=20,
        patch_size=4,
    )
    return randomise(CLIPVisionModel._from_config(config, attn_implementation="eager"))


@pytest.fixture(scope="module")
def seen_by_tower(tower):
    with torch.no_grad():
        return tower(random_states(3, 3, 20, 20), output_attentions=True, output_hidden_states=True)


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_the_row_of_cls_is_the_one_of_eager_clip(tower, seen_by_tower, layer):
    row = cls_row(tower.encoder.layers[layer], seen_by_tower.hidden_states[layer])
    expected = seen_by_tower.attentions[layer].mean(dim=1)[:, 0, 1:]
    assert row.shape == (3, 25)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row, expected)
    assert row.std(dim=1).min() > 0.1 * row.mean()  # far from uniform, so that another layer's row would show


def test_the_column_of_cls_is_left_out_without_renormalising(tower, seen_by_tower):
    row = cls_row(tower.encoder.layers[1], seen_by_tower.hidden_states[1])
    to_itself = seen_by_tower.attentions[1][:, :, 0, 0].mean(dim=1)
    assert to_itself.min() > 0.001
    torch.testing.assert_close(row.sum(dim=1), 1 - to_itself)


def test_the_row_of_cls_is_fp32_in_a_half_precision_tower(tower, seen_by_tower):
    layer = tower.encoder.layers[1]
    expected = cls_row(layer, seen_by_tower.hidden_states[1])
    try:
        row = cls_row(layer.to(torch.bfloat16), seen_by_tower.hidden_states[1].to(torch.bfloat16))
    finally:
        randomise(tower.float())
    assert row.dtype == torch.float32
    assert not torch.equal(row, row.to(torch.bfloat16).float())
    torch.testing.assert_close(row, expected, rtol=0.2, atol=0.005)
    torch.testing.assert_close(cls_row(layer, seen_by_tower.hidden_states[1]), expected)


def test_the_row_of_cls_makes_no_map():
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, image_size=80, patch_size=4
    )
    layer = CLIPVisionModel._from_config(config).encoder.layers[0]
    with torch.no_grad(), Largest() as largest:
        cls_row(layer, random_states(2, 401, 16))
    assert 0 < largest.numel <= 2 * 401 * 16


# -------------------------------------------------------------------------------------------------- one Llama layer


@pytest.fixture(scope="module", params=[(4, 4), (4, 2), (4, 1), (6, 2)], ids=["MHA", "GQA", "MQA", "GQA of 3"])
def decoder(request):
    heads, kv_heads = request.param
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    return randomise(LlamaModel._from_config(config, attn_implementation="eager"))


LAST = torch.tensor([[8], [8]])  # of two prompts of 9 columns
LENGTHS = (11, 7, 10)  # of three prompts, padded at the left


@pytest.fixture(scope="module")
def padded():
    """ids, mask and positions of the three prompts."""
    longest = max(LENGTHS)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in LENGTHS])
    ids = torch.randint(1, 50, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


@pytest.fixture(scope="module")
def seen_by_decoder(decoder, padded):
    ids, mask, positions = padded
    with torch.no_grad():
        return decoder(
            ids, attention_mask=mask, position_ids=positions, output_attentions=True, output_hidden_states=True
        )


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_the_row_of_the_last_token_is_the_one_of_eager_llama(decoder, padded, seen_by_decoder, layer):
    _, mask, positions = padded
    hidden = seen_by_decoder.hidden_states[layer]
    query, allowed = torch.full((3, 1), 10), mask.bool().unsqueeze(1)
    rows = prompt_rows(decoder.layers[layer], hidden, query, decoder.rotary_emb(hidden, positions), allowed)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, seen_by_decoder.attentions[layer][:, :, -1:])
    assert (rows.masked_select(~allowed.unsqueeze(1)) == 0).all()
    assert rows.std() > 0.5 * rows.mean()


def test_every_item_may_have_queries_of_its_own(decoder, padded, seen_by_decoder):
    _, mask, positions = padded
    hidden = seen_by_decoder.hidden_states[2]
    query = torch.tensor([[3, 10], [9, 5], [10, 10]])
    allowed = mask.bool().unsqueeze(1) & (torch.arange(11) <= query.unsqueeze(-1))
    rows = prompt_rows(decoder.layers[2], hidden, query, decoder.rotary_emb(hidden, positions), allowed)
    expected = [seen_by_decoder.attentions[2][item][:, columns] for item, columns in enumerate(query)]
    torch.testing.assert_close(rows, torch.stack(expected))


def test_one_row_of_positions_serves_all_rows(decoder):
    hidden = random_states(3, 9, decoder.config.hidden_size)
    one = decoder.rotary_emb(hidden, torch.arange(9).unsqueeze(0))
    each = decoder.rotary_emb(hidden, torch.arange(9).expand(3, -1))
    assert one[0].shape[0] == 1
    query = torch.tensor([[8], [5], [8]])
    rows = prompt_rows(decoder.layers[1], hidden, query, one, None)
    assert torch.equal(rows, prompt_rows(decoder.layers[1], hidden, query, each, None))


def eager_row(decoder, hidden, rotary):
    """The last row of layer 1's own eager attention, every key allowed."""
    layer = decoder.layers[1]
    _, weights = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None)
    return weights[:, :, -1:]


def test_nothing_is_masked_where_all_is_allowed(decoder):
    hidden = random_states(2, 9, decoder.config.hidden_size)
    rotary = decoder.rotary_emb(hidden, torch.tensor([[0, 1, 2, 3, 9, 10, 20, 21, 30]]))  # gaps, as after pruning
    rows = prompt_rows(decoder.layers[1], hidden, LAST, rotary, None)
    torch.testing.assert_close(rows, eager_row(decoder, hidden, rotary))
    all_allowed = torch.ones(2, 1, 9, dtype=torch.bool)
    assert torch.equal(rows, prompt_rows(decoder.layers[1], hidden, LAST, rotary, all_allowed))


def test_without_a_rotary_embedding_positions_do_not_matter(decoder):
    hidden = random_states(2, 9, decoder.config.hidden_size)
    nowhere = decoder.rotary_emb(hidden, torch.zeros(1, 9, dtype=torch.long))
    rows = prompt_rows(decoder.layers[1], hidden, LAST, None, None)
    torch.testing.assert_close(rows, eager_row(decoder, hidden, nowhere))
    somewhere = decoder.rotary_emb(hidden, torch.arange(9).unsqueeze(0))
    assert (rows - prompt_rows(decoder.layers[1], hidden, LAST, somewhere, None)).abs().max() > 0.01


def test_the_rows_of_a_prompt_make_no_map(decoder):
    length, width = 300, decoder.config.hidden_size
    hidden = random_states(2, length, width)
    rotary = decoder.rotary_emb(hidden, torch.arange(length).unsqueeze(0))
    query, allowed = torch.tensor([[299], [250]]), torch.ones(2, 1, length, dtype=torch.bool)
    with torch.no_grad(), Largest() as largest:
        prompt_rows(decoder.layers[0], hidden, query, rotary, allowed)
    assert 0 < largest.numel <= 2 * length * width


def test_shapes_are_known_without_the_data(decoder):
    layer = LlamaModel._from_config(decoder.config).layers[0].to("meta")  # reading a value of a meta tensor is an error
    hidden = torch.empty(2, 9, decoder.config.hidden_size, device="meta")
    rotary = (torch.empty(1, 9, 8, device="meta"),) * 2
    query = torch.empty(2, 3, dtype=torch.long, device="meta")
    rows = prompt_rows(layer, hidden, query, rotary, torch.empty(2, 3, 9, dtype=torch.bool, device="meta"))
    assert rows.shape == (2, decoder.config.num_attention_heads, 3, 9)


# ------------------------------------------------------------------------------------------------------- the parts


def row_by_hand(query, key, scale, allowed):
    """float64, one head and one key at a time: query [H][d], key [Hk][L][d], allowed [L]."""
    rows = []
    for head, asked in enumerate(query):
        keys = key[head * len(key) // len(query)]
        logits = [scale * sum(q * k for q, k in zip(asked, one, strict=True)) for one in keys]
        largest = max(logit for logit, seen in zip(logits, allowed, strict=True) if seen)
        powers = [math.exp(logit - largest) if seen else 0.0 for logit, seen in zip(logits, allowed, strict=True)]
        rows.append([power / sum(powers) for power in powers])
    return rows


@settings(quick, max_examples=60)
@given(
    num_keys=st.integers(1, 3),
    group=st.integers(1, 3),
    num_queries=st.integers(1, 3),
    length=st.integers(1, 7),
    scale=st.sampled_from([0.25, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_row_is_the_softmax_over_the_keys_that_are_allowed(
    num_keys, group, num_queries, length, scale, dtype, masked, seed
):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, num_keys * group, num_queries, 4, generator=generator).to(dtype)
    key = torch.randn(2, num_keys, length, 4, generator=generator).to(dtype)
    allowed = torch.rand(2, num_queries, length, generator=generator) < 0.6
    allowed[..., seed % length] = True
    rows = attention_rows(query, key, scale, allowed if masked else None)
    assert rows.shape == (2, num_keys * group, num_queries, length)
    assert rows.dtype == torch.float32
    seen = (allowed if masked else torch.ones_like(allowed)).tolist()
    for view in range(2):
        for asks in range(num_queries):
            by_hand = row_by_hand(query[view, :, asks].tolist(), key[view].tolist(), scale, seen[view][asks])
            expected = torch.tensor(by_hand, dtype=torch.float64)
            torch.testing.assert_close(rows[view, :, asks].double(), expected, rtol=2e-6, atol=2e-7)
    if masked:
        assert (rows.masked_select(~allowed.unsqueeze(1)) == 0).all()


@quick
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    length=st.integers(1, 9),
    half=st.integers(1, 8),
    shared=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_the_rotation_is_the_one_of_transformers(batch, heads, length, half, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, batch, heads, length, 2 * half, generator=generator)
    cos, sin = torch.randn(2, 1 if shared else batch, length, 2 * half, generator=generator)
    rotated = (rotate(query, cos, sin), rotate(key, cos, sin))
    for found, expected in zip(rotated, apply_rotary_pos_emb(query, key, cos, sin), strict=True):
        assert torch.equal(found, expected)


def test_heads_are_runs_of_neighbouring_channels():
    states = torch.arange(2 * 3 * 8).view(2, 3, 8)
    split = split_heads(states, 4)
    assert split.shape == (2, 2, 3, 4)
    assert split[1, 0, 2].tolist() == [40, 41, 42, 43]
    assert split[1, 1, 2].tolist() == [44, 45, 46, 47]


def test_a_module_computes_where_its_weights_are_or_where_accelerate_says():
    module = nn.Sequential(nn.ReLU(), nn.Linear(2, 2, device="meta"))
    assert device_of(module) == torch.device("meta")
    module[1]._hf_hook = SimpleNamespace(execution_device=None)  # a hook that moves nothing
    assert device_of(module) == torch.device("meta")
    module[1]._hf_hook = SimpleNamespace(execution_device="cpu")  # weights offloaded, computed elsewhere
    assert device_of(module) == torch.device("cpu")
    module[1]._hf_hook = SimpleNamespace(execution_device=torch.device("cpu"))
    assert device_of(module) == torch.device("cpu")
