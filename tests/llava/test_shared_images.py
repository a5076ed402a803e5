"""Prompts of a batch that show the same picture: it is encoded once, and nothing else changes."""

import inspect
import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import to_hugging_face
from pairwise import pairwise
from safetensors.torch import load_file, save_file

import vscan
from llava.eval.answering import Answering, Preparation, load_checked
from playground.tiny import draw

TEXTS = ["What is this?", "How many shapes\nare there, and of which colours?", "Why?", "Is it red?", "Where is it?"]
SHOWN = ["a.png", "b.png", "a.png", None, "a.png"]
REDUCTIONS = {
    "dense": None,
    "vscan": {"visual_tokens": 24, "layers": {4: 8}},
    "decoder only": {"layers": {4: 8}},
    "fastervlm": {"method": "fastervlm", "visual_tokens": 16},
    "random": {"method": "random", "visual_tokens": 16},
    "downsample": {"method": "downsample", "visual_tokens": 16},
}
NEXT = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[336, 672], [672, 336]],
}


@pytest.fixture(scope="module")
def loaded(built_small, tmp_path_factory):
    """(tokenizer, model, image processor) by name, and the folder of the pictures."""
    folder = tmp_path_factory.mktemp("models")
    models = {}
    for name, more in (("original", {}), ("original next", NEXT)):
        shutil.copytree(built_small, folder / name)
        config = folder / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | more))
        if more:
            weights = load_file(folder / name / "model.safetensors")
            weights["model.image_newline"] = torch.linspace(-1, 1, json.loads(config.read_text())["hidden_size"])
            save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
        tokenizer, model, processor = models[name] = load_checked(str(folder / name), "cpu")
        model.generation_config.max_length = None
        other = load_checked(str(folder / name), "cpu")[1]
        image_token = other.config.vocab_size
        other.resize_token_embeddings(image_token + 1, mean_resizing=False)
        other.lm_head.weight.data[image_token] = 0
        stock = to_hugging_face(other, image_token)
        stock.generation_config.max_length = None
        models[name.replace("original", "stock")] = tokenizer, stock, processor
    draw(folder / "a.png", seed=1)
    draw(folder / "b.png", seed=2)
    return models, folder


def answers_of(loaded, folder, reduction, shares, **generation):
    """Answers to all questions in one batch, their stats, and how many views the tower saw."""
    tokenizer, model, processor = loaded
    applied = None if reduction is None else vscan.apply(model, **reduction)
    prepare = Preparation.of(model, tokenizer, processor, str(folder), "vicuna_v1", reduction=applied)
    prompts = [prepare({"text": text, "image": image}) for text, image in zip(TEXTS, SHOWN, strict=True)]
    assert [prompt.image_key for prompt in prompts] == [image and str(folder / image) for image in SHOWN]
    if not shares:
        prompts = [replace(prompt, image_key=None) for prompt in prompts]
    base = model.model
    tower = base.vision_tower.vision_tower if hasattr(model, "encode_images") else base.vision_tower
    seen = []
    hook = tower.pre_layrnorm.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    try:
        answering = Answering(
            tokenizer, model, applied, do_sample=False, min_new_tokens=8, max_new_tokens=8, **generation
        )
        return answering(prompts), seen, [len(prompt.pixels) for prompt in prompts if prompt.pixels is not None]
    finally:
        hook.remove()
        if applied is not None:
            applied.remove()


@pytest.mark.parametrize(
    ("format_name", "tiles", "setting"), pairwise(["original", "stock"], ["", " next"], REDUCTIONS)
)
def test_a_shared_picture_is_encoded_once_and_gives_the_same_answers_and_stats(loaded, format_name, tiles, setting):
    models, folder = loaded
    name = format_name + tiles
    apart, seen_apart, views = answers_of(models[name], folder, REDUCTIONS[setting], shares=False)
    shared, seen, _ = answers_of(models[name], folder, REDUCTIONS[setting], shares=True)
    assert shared == apart
    assert seen_apart == [sum(views)]
    model = models[name][1]
    takes_features = name.startswith("original") or "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    assert seen == [views[0] + views[1] if takes_features else sum(views)]
    assert len({answer.text for answer in apart}) > 2
    if setting == "vscan" and "next" not in name:
        stages = [[[0, 24], [4, 8]]] * 5
        stages[3] = [[0, 0]]
        assert [answer.stats["stages"] for answer in shared] == stages


@pytest.mark.parametrize("name", ["original", "stock"])
def test_beams_share_pictures_too(loaded, name):
    models, folder = loaded
    apart, *_ = answers_of(models[name], folder, REDUCTIONS["vscan"], shares=False, num_beams=2)
    shared, *_ = answers_of(models[name], folder, REDUCTIONS["vscan"], shares=True, num_beams=2)
    assert shared == apart


@pytest.mark.parametrize("setting", ["dense", "vscan"])
def test_embedded_prompts_are_equal_bit_for_bit(loaded, setting):
    model = loaded[0]["original"][1]
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 5, -200, 6], [1, -200, 7, 8], [1, 5, -200, 9]])
    applied = None if REDUCTIONS[setting] is None else vscan.apply(model, **REDUCTIONS[setting])
    try:
        with torch.inference_mode():
            images = model.embed_images(list(pixels.unsqueeze(1)), None)
            pixels = list(pixels.unsqueeze(1))
            apart = model.embed_prompts(ids, None, [pixels[0], pixels[1], pixels[0]])
            shared = model.embed_prompts(ids, None, None, image_features=images.select((0, 1, 0)))
            with pytest.raises(ValueError, match=r"as many images as the prompts name, \[1, 1, 1\], got 2"):
                model.embed_prompts(ids, None, None, image_features=images)
    finally:
        if applied is not None:
            applied.remove()
    assert torch.equal(shared[0], apart[0])
    assert (shared[2].kept is None) == (apart[2].kept is None) == (setting == "dense")
    assert setting == "dense" or torch.equal(shared[2].kept, apart[2].kept)
    assert torch.equal(shared[2].visual, apart[2].visual)
    assert (shared[2].num_views, shared[2].num_kept) == (apart[2].num_views, apart[2].num_kept)
