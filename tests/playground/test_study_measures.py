"""Numbers about attention against brute force, rows against eager attention, the lens against the model's logits."""

import math

import numpy as np
import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.answering import load_checked
from playground.scenes.files import benchmark_scenes, write_benchmark
from playground.scenes.world import GRID, Thing
from playground.studies.attention import ASKED, ASKED_SHARE, LOWER, MASS, UPPER, measure_last
from playground.studies.dense import Parts, Reader, preparation, tower_looks
from playground.studies.lens import likeliest, openings, settle
from playground.studies.measures import auc, patch_distances
from playground.studies.setting import Setting, covered, read_shown
from playground.tiny import build_checkpoint
from vscan.eval.questions import read_questions


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build_checkpoint(folder / "tiny-llava")
    write_benchmark(folder / "data", "test", 2)
    questions = read_questions(folder / "data" / "questions.jsonl")[4:8]
    loaded = load_checked(str(folder / "tiny-llava"), device="cpu")
    return Setting(*loaded, folder / "tiny-llava", folder / "data", questions, 64, 3, folder)


@pytest.fixture(scope="module")
def prompts(setting):
    prompts = list(map(preparation(setting), setting.questions))
    assert len({len(prompt.ids) for prompt in prompts}) > 1  # some rows are padded
    return prompts


@pytest.fixture(scope="module")
def eager(setting, prompts):
    """What eager attention says of each prompt alone: logits, and attention [layers, L, L], mean over heads."""
    model = load_checked(str(setting.model_path), device="cpu", attn_implementation="eager")[1]
    outputs = []
    for prompt in prompts:
        with torch.no_grad():
            output = model(torch.tensor([prompt.ids]), images=prompt.pixels, output_attentions=True)
        maps = torch.stack([attention[0].mean(0) for attention in output.attentions])
        outputs.append((output.logits[0, -1], maps))
    return outputs


def test_auc_is_the_share_of_pairs_in_order():
    chance = np.random.default_rng(0)
    scores = chance.integers(0, 5, 30).astype(float)
    positive, negative = np.arange(30) < 11, np.arange(30) > 14
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[negative]]
    assert auc(scores, positive, negative) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(scores, positive & negative, negative))


def test_distances_are_between_patches_of_the_grid():
    distances = patch_distances((2, 3))
    places = [(row, column) for row in range(2) for column in range(3)]
    expected = [[math.dist(one, other) for other in places] for one in places]
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_things_cover_their_patches_on_any_grid():
    thing = Thing("red", "circle", row=2, column=4, height=2, width=4)
    mask = covered([thing], (GRID, GRID)).reshape(GRID, GRID)
    assert mask[2:4, 4:8].all()
    assert mask.sum() == 8
    half = covered([thing], (12, 12)).reshape(12, 12)
    assert half[1, 2:4].all()
    assert half.sum() == 2


def test_shares_of_one_questions_attention():
    looks = np.zeros((1, 36))
    looks[0, 0], looks[0, 35], looks[0, 14] = 0.1, 0.3, 0.1  # first row, last row, third row
    about = (Thing("red", "circle", row=20, column=20, height=4, width=4),)  # the last patch of 6 x 6
    measures = {name: float(values[0]) for name, values in measure_last(looks, about, (6, 6)).items()}
    assert (measures[MASS], measures[UPPER], measures[LOWER]) == pytest.approx((50, 20, 60))
    assert (measures[ASKED_SHARE], measures[ASKED]) == pytest.approx((60, 100 / 36))
    assert ASKED_SHARE not in measure_last(looks, None, (6, 6))


def test_questions_know_what_they_are_about(setting):
    shown = read_shown(setting.data)
    for number, (scene, questions, _) in enumerate(benchmark_scenes("test", 2)):
        image = f"{number:06d}.png"
        assert shown.things[image] == list(scene.things)
        assert all(shown.about[image, question.text] == question.about for question in questions)


def test_tower_looks_are_those_of_eager_attention(setting, prompts):
    tower = Parts.of(setting.model).tower
    pixels = torch.cat([prompts[0].pixels, prompts[2].pixels])
    looks, reach = tower_looks(setting.model, pixels)
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = tower(pixels, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation("sdpa")
    distances = patch_distances((24, 24))
    for index, attention in enumerate(maps):
        torch.testing.assert_close(looks[index], attention[:, :, 0, 1:].mean(1), rtol=1e-3, atol=1e-6)
        patches = attention[:, :, 1:, 1:]
        far = ((patches * distances).sum(-1) / patches.sum(-1)).mean((1, 2))
        torch.testing.assert_close(reach[index], far, rtol=1e-4, atol=1e-4)


def test_decoder_looks_are_those_of_eager_attention(setting, prompts, eager):
    looks = Reader(setting).looks(prompts, 576)
    for row, (prompt, (_, maps)) in enumerate(zip(prompts, eager, strict=True)):
        start = prompt.ids.index(IMAGE_TOKEN_INDEX)
        torch.testing.assert_close(looks[:, row], maps[:, -1, start : start + 576], rtol=1e-3, atol=1e-6)


def test_the_lens_at_the_last_layer_is_the_models_own_answer(setting, prompts, eager):
    tokens = likeliest(setting.model, Reader(setting).states(prompts))
    assert tokens.shape == (8, 4)
    assert tokens[-1].tolist() == [int(logits.argmax()) for logits, _ in eager]


def test_a_layer_that_decides_is_seen(setting, monkeypatch):
    """From layer 5 on the state is one direction, and the head reads the answer there."""
    model, decoder = setting.model, Parts.of(setting.model).decoder
    answer = setting.tokenizer("yes", add_special_tokens=False).input_ids[-1]  # all answers begin alike
    direction = torch.linspace(-1, 1, 64)
    handles = [
        layer.register_forward_hook(lambda module, args, output: output * 0 + direction) for layer in decoder.layers[5:]
    ]
    head = torch.zeros_like(model.lm_head.weight)
    head[answer] = direction
    # Whatever else is in the state says another token.
    head[answer - 1] = -direction + 0.01 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.lm_head, "weight", torch.nn.Parameter(head))
    asked = [{**question, "answer": "yes"} for question in setting.questions]
    try:
        planted = Setting(**{**vars(setting), "questions": asked})
        same, right = settle(planted, ["existence"] * len(asked))
    finally:
        for handle in handles:
            handle.remove()
    assert same[5:].all()
    assert right[5:].all()
    assert (same == right).all()
    assert not same[:5].all()


def test_what_all_answers_of_a_kind_begin_with_is_told():
    answers = [[[7, 1, 2]], [[7, 1, 3], [7, 1, 9, 9]], [[4]], [[4]], [[5, 6]], [[8, 6]]]
    assert openings(answers, ["box", "box", "same", "same", "free", "free"]) == {"box": 2, "same": 0, "free": 0}
