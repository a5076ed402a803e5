"""What a scene is, over all seeds: things apart and inside, names unique, one split each, and drawn where they are."""

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.scenes.files import benchmark_scenes
from playground.scenes.picture import draw
from playground.scenes.questions import PLURALS, for_training, one_of_each
from playground.scenes.world import COLOURS, GLYPHS, SHAPES, SPLITS, Scene, draw_scene

NOISE = 8  # of a pixel's channel, each way
SHADE = 12  # of a thing's colour, each way
seeds = st.integers(0, 2**64)


@settings(deadline=None, max_examples=100)
@given(seed=seeds, split=st.sampled_from(sorted(SPLITS)), side=st.sampled_from([8, 12, 24]))
def test_things_lie_inside_apart_and_are_named_once(seed, split, side):
    scene = draw_scene(np.random.default_rng(seed), split, side)
    assert 0 <= scene.row <= 24 - side
    assert 0 <= scene.column <= 24 - side
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        assert scene.column <= x1 < x2 <= scene.column + side
        assert scene.row <= y1 < y2 <= scene.row + side
        assert thing.text == "" or thing.shape == "sign"
        if thing.shape == "sign":
            assert (thing.height, thing.width) == (2, 2 * len(thing.text))
            assert len(thing.text) in (2, 3)
            assert set(thing.text) <= set(GLYPHS)
    for one, other in combinations(scene.things, 2):
        across = max(one.column, other.column) - min(one.column + one.width, other.column + other.width)
        down = max(one.row, other.row) - min(one.row + one.height, other.row + other.height)
        assert max(across, down) >= 1, "there is a patch of ground between any two, corners included"
    names = [(thing.colour, thing.shape) for thing in scene.things]
    assert len(set(names)) == len(names)
    if side == 24:
        covered = {(y, x) for t in scene.things for y in range(t.row, t.box[3]) for x in range(t.column, t.box[2])}
        assert scene.foreground == len(covered) / 576 <= 0.1


@settings(deadline=None, max_examples=50)
@given(seed=seeds, order=st.randoms(use_true_random=False))
def test_the_split_hangs_on_what_is_seen_not_on_the_order_of_the_things(seed, order):
    scene = draw_scene(np.random.default_rng(seed), "test")
    things = list(scene.things)
    order.shuffle(things)
    assert Scene(tuple(things)).split == scene.split == "test"


def test_no_two_splits_share_a_scene_and_the_test_has_a_tenth():
    drawn = {split: [scene for scene, _, _ in benchmark_scenes(split, 40)] for split in SPLITS}
    seen = {split: {frozenset(scene.things) for scene in scenes} for split, scenes in drawn.items()}
    assert all(len(scenes) == 40 for scenes in seen.values())
    assert all({scene.split for scene in scenes} == {split} for split, scenes in drawn.items())
    for one, other in combinations(seen.values(), 2):
        assert not one & other
    # Shifted things have the split of another scene: their shares are those of all scenes.
    shifted = [
        Scene(tuple(replace(thing, row=thing.row + k) for thing in scene.things))
        for scene in drawn["test"]
        for k in range(1, 26)
    ]
    shares = {split: np.mean([scene.split == split for scene in shifted]) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.04)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_the_ground_is_grey_and_things_have_their_colours(seed):
    chance = np.random.default_rng(seed)
    scene = draw_scene(chance, "test")
    picture = draw(scene, chance).astype(int)
    assert picture.shape == (96, 96, 3)
    ground = np.ones((96, 96), bool)
    for thing in scene.things:
        x1, y1, x2, y2 = (4 * patches for patches in thing.box)
        ground[y1:y2, x1:x2] = False
        region, colour = picture[y1:y2, x1:x2], np.array(COLOURS[thing.colour])
        filled = {"square": (len(region) // 2, len(region) // 2), "sign": (0, 0)}
        if thing.shape in filled:
            assert abs(region[filled[thing.shape]] - colour).max() <= NOISE + SHADE + 1
        if thing.shape == "sign":
            inked = abs(region - 25).max(-1) <= NOISE + 1
            assert all(inked[:, 8 * k : 8 * k + 8].sum() in range(9, 20) for k in range(len(thing.text)))
    assert np.ptp(picture[ground], axis=1).max() <= 2 * NOISE


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_what_the_benchmark_asks_is_worded_as_in_training(seed):
    names = re.compile(rf"\b(an?|{'|'.join((*COLOURS, *SHAPES, 'sign', *PLURALS.values()))})\b")
    chance, asked = np.random.default_rng(seed), None
    while asked is None:
        asked = one_of_each(draw_scene(chance, "test"), 0, chance)
    trained = [question for _ in range(8) for question in for_training(draw_scene(chance, "train"), chance)]
    assert {names.sub("_", question.text) for question in asked} <= {names.sub("_", q.text) for q in trained}
