"""The CLIP tower gives what transformers' own forward gives, and runs no block more than that takes."""

from types import SimpleNamespace

import pytest
import torch
from helpers import Injected, close
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, CLIPVisionModel

from vscan.models.towers import TowerMemory, encode_views, grid_of, run_tower

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
        features, rows = run_tower(self.module, self.pixels, feature_layer, row_layers)
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
    _, rows = run_tower(tower.module, tower.pixels, -2, (3, -2))
    assert list(rows) == [3, -2]
    assert torch.equal(rows[3], rows[-2])


@pytest.mark.parametrize("feature_layer", [-NUM_LAYERS - 2, NUM_LAYERS + 1, 99])
def test_a_layer_that_the_tower_does_not_have_is_refused(tower, feature_layer):
    with pytest.raises(ValueError, match=f"expected one of 5 vision layers, got {feature_layer}$"):
        run_tower(tower.module, tower.pixels, feature_layer)


@pytest.mark.parametrize("layer", [-NUM_LAYERS - 1, NUM_LAYERS])
def test_a_row_of_a_layer_that_the_tower_does_not_have_is_refused(tower, layer):
    with pytest.raises(ValueError, match=f"expected one of 5 vision layers, got {layer}$"):
        run_tower(tower.module, tower.pixels, -2, (0, layer))


def test_a_batch_of_views_equals_each_view_alone(tower):
    features, rows = run_tower(tower.module, tower.pixels, -2, (1, -1))
    for view in range(2):
        alone, alone_rows = run_tower(tower.module, tower.pixels[view : view + 1], -2, (1, -1))
        close(alone[0], features[view])
        for layer in (1, -1):
            close(alone_rows[layer][0], rows[layer][view])


def test_the_grid_of_a_tower(tower):
    assert grid_of(tower.module) == (4, 4)
    published = CLIPVisionConfig(image_size=336, patch_size=14)
    assert grid_of(SimpleNamespace(config=published)) == (24, 24)


# ------------------------------------------------------------------------------------------------------ TowerMemory


def times_run(tower, memory, wanted):
    """How often the tower ran for these (pixels, feature layer, row layers), all results as without a memory."""
    ran = []
    hook = tower.module.pre_layrnorm.register_forward_hook(lambda module, args, output: ran.append(len(output)))
    with memory:
        found = [run_tower(tower.module, *call) for call in wanted]
    hook.remove()
    for (features, rows), call in zip(found, wanted, strict=True):
        expected, expected_rows = run_tower(tower.module, *call)
        assert torch.equal(features, expected)
        assert rows.keys() == expected_rows.keys()
        assert all(torch.equal(rows[layer], expected_rows[layer]) for layer in rows)
    return len(ran)


def test_views_that_come_again_are_not_encoded_again(tower):
    memory = TowerMemory(row_layers=(1, -1))
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


# ----------------------------------------------------------------------------------------------------- encode_views


def double(features):
    return 2 * features


def test_a_kept_token_is_in_its_slot_and_all_others_are_empty(tower):
    slots = (1, 4, 15)
    reduction = SimpleNamespace(method=Injected(slots, merged=False), num_kept=3, num_tokens=16)
    found, kept, finite = encode_views(reduction, tower.module, double, tower.pixels, -2)
    assert found.shape == (2, 16, 32)
    assert kept.tolist() == [[slot in slots for slot in range(16)]] * 2
    assert not found[~kept].any()
    assert finite.item() is True
    expected = 2 * tower.hidden_states[-2][:, 1:][:, list(slots)]
    close(found[:, list(slots)], expected)


def test_a_method_is_given_pixels_features_rows_and_the_grid(tower):
    seen = []

    class Watching(Injected):
        cls_layers = (1, -1)

        def encode(self, views, num):
            seen.append((views, num))
            return super().encode(views, num)

    reduction = SimpleNamespace(method=Watching((0, 2), merged=False), num_kept=2, num_tokens=16)
    encode_views(reduction, tower.module, double, tower.pixels, -3)
    (views, num), *more = seen
    assert not more
    assert num == 2
    assert views.grid == (4, 4)
    assert views.project is double
    assert torch.equal(views.pixel_values, tower.pixels)
    close(views.features, tower.hidden_states[-3][:, 1:])
    assert list(views.rows) == [1, -1]
    for layer in (1, -1):
        close(views.rows[layer], tower.rows[layer])
