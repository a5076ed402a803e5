"""The CLIP tower gives what transformers' own forward gives, and runs no block more than that takes."""

from types import SimpleNamespace

import pytest
import torch
from helpers import Injected, close
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, CLIPVisionModel

from vscan.methods.base import Needs
from vscan.models.family import reduce_views
from vscan.models.towers import TowerMemory, clip_views, grid_of, run_tower

NUM_LAYERS = 5
quick = settings(deadline=None, derandomize=True, max_examples=60)


def make_tower(attn_implementation: str) -> CLIPVisionModel:
    """A tower with a grid of 4 x 4; the same weights every time."""
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    tower = CLIPVisionModel._from_config(config, attn_implementation=attn_implementation).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tower.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return tower


class Tower:
    """A tower, what transformers' eager forward makes of two views, and how often each of its blocks ran."""

    def __init__(self):
        self.module = make_tower("sdpa")
        for index, block in enumerate(self.module.encoder.layers):
            block.register_forward_hook(lambda *_, index=index: self.ran.append(index))
        self.ran = []
        self.pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        seen = make_tower("eager")(self.pixels, output_attentions=True, output_hidden_states=True)
        self.hidden_states = seen.hidden_states
        self.rows = [attention.mean(dim=1)[:, 0, 1:] for attention in seen.attentions]  # [CLS] to the patches

    def check(self, feature_layer: int, row_layers: tuple[int, ...]) -> None:
        """Run the tower; compare its features, its rows and how often each block ran."""
        self.ran.clear()
        seen = run_tower(self.module, self.pixels, feature_layer, Needs(rows=row_layers))
        features, rows = seen.hidden, seen.rows
        assert features.shape == (2, 17, 32)
        close(features[:, 1:], self.hidden_states[feature_layer][:, 1:])
        close(features, self.hidden_states[feature_layer])
        assert list(rows) == list(dict.fromkeys(row_layers))
        for layer in row_layers:
            assert rows[layer].shape == (2, 16)
            close(rows[layer], self.rows[layer])
        # hidden_states[k] takes k blocks, the row of block k takes the k blocks before it.
        needed = [range(NUM_LAYERS + 1)[feature_layer], *(range(NUM_LAYERS)[layer] for layer in row_layers)]
        assert self.ran == list(range(max(needed)))


@pytest.fixture(scope="module")
def tower():
    return Tower()


def test_the_layers_differ_so_that_a_wrong_one_would_show(tower):
    for one in range(NUM_LAYERS):
        for other in range(one):
            assert (tower.rows[one] - tower.rows[other]).abs().max() > 0.01
            assert (tower.hidden_states[one] - tower.hidden_states[other]).abs().max() > 0.1
    assert (tower.hidden_states[-1] - tower.hidden_states[-2]).abs().max() > 0.1


@pytest.mark.parametrize("feature_layer", range(-NUM_LAYERS - 1, NUM_LAYERS + 1))
def test_features_are_the_hidden_states_of_the_layer_that_is_read(tower, feature_layer):
    tower.check(feature_layer, ())


@pytest.mark.parametrize("layer", range(-NUM_LAYERS, NUM_LAYERS))
@pytest.mark.parametrize("feature_layer", [0, 3, -2])
def test_rows_of_layers_below_at_and_above_the_one_that_is_read(tower, feature_layer, layer):
    tower.check(feature_layer, (layer,))


@quick
@given(
    feature_layer=st.integers(-NUM_LAYERS - 1, NUM_LAYERS),
    row_layers=st.lists(st.integers(-NUM_LAYERS, NUM_LAYERS - 1), max_size=4).map(tuple),
)
def test_any_layer_with_any_rows(tower, feature_layer, row_layers):
    tower.check(feature_layer, row_layers)


def test_rows_are_found_as_they_were_asked_for(tower):
    rows = run_tower(tower.module, tower.pixels, -2, Needs(rows=(3, -2))).rows
    assert list(rows) == [3, -2]
    assert torch.equal(rows[3], rows[-2])


@pytest.mark.parametrize("feature_layer", [-NUM_LAYERS - 2, NUM_LAYERS + 1, 99])
def test_a_layer_that_the_tower_does_not_have_is_refused(tower, feature_layer):
    with pytest.raises(ValueError, match=f"expected one of 5 vision layers, got {feature_layer}$"):
        run_tower(tower.module, tower.pixels, feature_layer)


@pytest.mark.parametrize("layer", [-NUM_LAYERS - 1, NUM_LAYERS])
def test_a_row_of_a_layer_that_the_tower_does_not_have_is_refused(tower, layer):
    with pytest.raises(ValueError, match=f"expected one of 5 vision layers, got {layer}$"):
        run_tower(tower.module, tower.pixels, -2, Needs(rows=(0, layer)))


def test_a_batch_of_views_equals_each_view_alone(tower):
    both = run_tower(tower.module, tower.pixels, -2, Needs(rows=(1, -1)))
    for view in range(2):
        alone = run_tower(tower.module, tower.pixels[view : view + 1], -2, Needs(rows=(1, -1)))
        close(alone.hidden[0], both.hidden[view])
        for layer in (1, -1):
            close(alone.rows[layer][0], both.rows[layer][view])


def test_the_grid_of_a_tower(tower):
    assert grid_of(tower.module) == (4, 4)
    published = CLIPVisionConfig(image_size=336, patch_size=14)
    assert grid_of(SimpleNamespace(config=published)) == (24, 24)


# ------------------------------------------------------------------------------------------------------ TowerMemory


def times_run(tower, memory, wanted):
    """How often the tower ran for these (pixels, feature layer, rows), all results as without a memory."""
    calls = [(tower.module, pixels, layer, Needs(rows=rows[0] if rows else ())) for pixels, layer, *rows in wanted]
    ran = []
    hook = tower.module.pre_layrnorm.register_forward_hook(lambda module, args, output: ran.append(len(output)))
    found = [memory.run(*call) for call in calls]
    hook.remove()
    for seen, call in zip(found, calls, strict=True):
        expected = run_tower(*call)
        assert torch.equal(seen.hidden, expected.hidden)
        assert seen.rows.keys() >= expected.rows.keys()  # and those that the memory collects
        assert all(torch.equal(seen.rows[layer], rows) for layer, rows in expected.rows.items())
    return len(ran)


def test_views_that_come_again_are_not_encoded_again(tower):
    memory = TowerMemory(rows=(1, -1))
    pixels = tower.pixels
    assert times_run(tower, memory, [(pixels, -2), (pixels.clone(), -2, (1,)), (pixels, -2, (-1, 1))]) == 1
    assert memory.seconds > 0


def test_what_differs_is_encoded(tower):
    memory = TowerMemory()
    pixels = tower.pixels
    calls = [(pixels, -2), (pixels + 1e-3, -2), (pixels[:1], -2), (pixels, -3), (pixels, -2, (0,)), (pixels, -2, (0,))]
    assert times_run(tower, memory, calls) == 5


def test_a_full_memory_keeps_what_it_has(tower):
    memory = TowerMemory(most_bytes=5000)  # of one view: 17 states of 32 floats
    first, second = tower.pixels[:1], tower.pixels[1:2]
    assert times_run(tower, memory, [(first, -2), (first, -2)]) == 1
    memory = TowerMemory(most_bytes=3000)
    assert times_run(tower, memory, [(first, -2), (second, -2), (first, -2), (second, -2)]) == 3


# ------------------------------------------------------------------------------------------------------ clip_views


def double(features):
    return 2 * features


def reduced_views(tower, method, num, feature_layer, memory=None):
    """Two views, encoded for a reduction to `num` tokens and reduced: tokens, which are left, and what is finite."""
    fitted = SimpleNamespace(method=method, num_kept=num, visual_tokens=num, group="view", reduces_views=True)
    reduction = SimpleNamespace(fitted=fitted, tower_memory=memory)
    [(views, of_images)], finite = clip_views(reduction, tower.module, double, tower.pixels, feature_layer, [2])
    assert of_images == [2]
    tokens, left, num_kept = reduce_views(fitted, views, of_images)
    assert num_kept == [2 * num]
    return tokens, left, finite


def test_a_kept_token_is_in_its_slot_and_all_others_are_empty(tower):
    slots = (1, 4, 15)
    found, kept, finite = reduced_views(tower, Injected(slots, merged=False), 3, -2)
    assert found.shape == (2, 16, 32)
    assert kept.tolist() == [[slot in slots for slot in range(16)]] * 2
    assert not found[~kept].any()
    assert finite.item() is True
    expected = 2 * tower.hidden_states[-2][:, 1:][:, list(slots)]
    close(found[:, list(slots)], expected)


def test_a_method_is_given_pixels_features_rows_and_the_grid(tower):
    seen = []

    class Watching(Injected):
        needs = Needs(rows=(1, -1))

        def encode(self, views, num):
            seen.append((views, num))
            return super().encode(views, num)

    reduced_views(tower, Watching((0, 2), merged=False), 2, -3)
    (views, num), *more = seen
    assert not more
    assert num == 2
    assert views.grid == (4, 4)
    assert views.project is double
    assert torch.equal(views.pixels, tower.pixels)
    close(views.features, tower.hidden_states[-3][:, 1:])
    assert list(views.rows) == [1, -1]
    for layer in (1, -1):
        close(views.rows[layer], tower.rows[layer])
    assert torch.equal(views.cls, run_tower(tower.module, tower.pixels, -3).hidden[:, 0])
    assert (views.num_heads, views.layout, views.state) == (4, None, {})


def test_a_reduction_s_memory_serves_a_second_method(tower):
    tower.ran.clear()
    memory = TowerMemory()
    first, second = (
        reduced_views(tower, Injected(slots, merged=False), 2, -2, memory)[0] for slots in [(0, 2), (3, 4)]
    )
    assert len(tower.ran) == NUM_LAYERS - 1  # what the layer that is read takes, once
    close(first[:, [0, 2]], 2 * tower.hidden_states[-2][:, [1, 3]])
    close(second[:, [3, 4]], 2 * tower.hidden_states[-2][:, [4, 5]])


def test_keys_of_the_patches_and_the_query_of_cls_are_those_of_the_layer_s_projections(tower):
    seen = run_tower(tower.module, tower.pixels, -2, Needs(keys=(2, -1)))
    for layer in (2, -1):
        block = tower.module.encoder.layers[layer]
        normed = block.layer_norm1(tower.hidden_states[layer if layer >= 0 else NUM_LAYERS + layer])
        close(seen.keys[layer], block.self_attn.k_proj(normed))
        close(seen.queries[layer], block.self_attn.q_proj(normed)[:, 0])
