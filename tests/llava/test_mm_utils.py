"""Pixels and prompt ids are the published ones, bit by bit; broken input is reported with its name."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import build_prompt
from llava.mm_utils import (
    cut_into_crops,
    expand2square,
    expand_image_tokens,
    get_model_name_from_path,
    load_image,
    load_image_processor,
    process_images,
    select_best_resolution,
    tokenizer_image_token,
)
from llava.tokenizer import load_tokenizer

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MEAN_COLOUR = (122, 116, 104)
PAD = SimpleNamespace(image_aspect_ratio="pad")


def noise(width, height, mode="RGB"):
    return Image.frombytes(mode, (width, height), np.random.default_rng(0).bytes(width * height * len(mode)))


def normalised(image):
    """float32 [3, H, W] of a uint8 image, by the published arithmetic."""
    scaled = (np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32)
    values = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A CLIP processor for 28 x 28 pixels."""
    folder = tmp_path_factory.mktemp("tower")
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return load_image_processor(folder)


def word_tokenizer(bos):
    """A fast tokenizer: "one" is 5, "two" is 6, "three" is 7; <s>, in front where `bos`, is 1."""
    backend = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "one": 5, "two": 6, "three": 7}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if bos else None, unk_token="<unk>")


# Images


def test_recorded_images_become_the_recorded_pixels(golden):
    processor = load_image_processor(golden / "cli" / "llava" / "clip_tower")
    records = json.loads((golden / "cli" / "preprocessed" / "llava.json").read_text())
    images = [load_image(golden / "cli" / "images" / name) for name in records]
    pixels = process_images(images, processor, PAD)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (6, 3, 336, 336)
    for image, values, record in zip(images, pixels, records.values(), strict=True):
        assert hashlib.sha256(image.tobytes()).hexdigest() == record["decoded_rgb_sha256"]
        assert torch.equal(values, normalised(Image.open(golden / "cli" / record["file"])))
        assert values.double().sum().item() == pytest.approx(record["pixel_values_sum_float64"], rel=1e-12)


def test_an_image_of_the_right_size_is_only_normalised(processor):
    image = noise(28, 28)
    assert torch.equal(process_images([image], processor, PAD), normalised(image)[None])


@pytest.mark.parametrize("size", [(28, 28), (28, 15), (13, 28), (28, 1)])
def test_pad_puts_the_image_in_the_middle_of_the_mean_colour(processor, size):
    image = noise(*size)
    square = Image.new("RGB", (28, 28), MEAN_COLOUR)
    square.paste(image, ((28 - size[0]) // 2, (28 - size[1]) // 2))
    assert torch.equal(process_images([image], processor, PAD), normalised(square)[None])


@pytest.mark.parametrize(("size", "corner"), [((4, 7), (1, 0)), ((7, 4), (0, 1)), ((4, 6), (1, 0)), ((5, 2), (0, 1))])
def test_expand2square_rounds_the_offset_down(size, corner):
    image = noise(*size)
    expected = np.full((max(size), max(size), 3), (1, 2, 3), dtype=np.uint8)
    left, top = corner
    expected[top : top + size[1], left : left + size[0]] = np.asarray(image)
    assert np.array_equal(np.asarray(expand2square(image, (1, 2, 3))), expected)


def test_expand2square_leaves_a_square_alone():
    image = noise(5, 5)
    assert expand2square(image, (0, 0, 0)) is image


@pytest.mark.parametrize("config", [{}, {"image_aspect_ratio": None}, {"image_aspect_ratio": "square"}])
def test_without_pad_the_processor_crops(processor, config):
    image = noise(28, 48)
    cropped = normalised(image.crop((0, 10, 28, 38)))[None]
    assert torch.equal(process_images([image], processor, SimpleNamespace(**config)), cropped)


def test_a_batch_is_its_images(processor):
    images = [noise(40, 30), noise(28, 28), noise(9, 64)]
    singles = torch.cat([process_images([image], processor, PAD) for image in images])
    assert torch.equal(process_images(images, processor, PAD), singles)


def test_other_ways_to_cut_and_several_images_at_once_are_refused(processor):
    with pytest.raises(ValueError, match="'anyres', 'pad', 'square' or None, got 'anyres_max_9'"):
        process_images([noise(8, 8)], processor, SimpleNamespace(image_aspect_ratio="anyres_max_9"))
    anyres = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=[[56, 28]])
    with pytest.raises(ValueError, match="expected one image at a time for image_aspect_ratio 'anyres', got 2"):
        process_images([noise(8, 8), noise(8, 8)], processor, anyres)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((336, 336), (336, 672)),  # all waste alike but these two, and this one comes first
        ((500, 375), (672, 672)),
        ((300, 420), (336, 672)),
        ((2000, 500), (1008, 336)),
        ((500, 2000), (336, 1008)),
        ((640, 300), (672, 336)),
        ((700, 300), (1008, 336)),  # more of it is kept than in 672 x 336
    ],
)
def test_the_resolution_keeps_most_and_wastes_least(size, expected):
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert select_best_resolution(size, pinpoints) == expected


def test_tiles_lie_in_the_middle_of_black_and_the_whole_comes_first():
    image = Image.new("RGB", (40, 10), (200, 100, 50))
    whole, left, right = cut_into_crops(image, [[56, 28]], 28)
    assert [crop.size for crop in (whole, left, right)] == [(28, 28)] * 3
    assert whole.getcolors() == [(28 * 28, (200, 100, 50))]
    # 56 wide, 14 high: 7 black rows above and below.
    for tile in (left, right):
        pixels = np.asarray(tile)
        assert (pixels[:7] == 0).all()
        assert (pixels[7:21] == (200, 100, 50)).all()
        assert (pixels[21:] == 0).all()


def test_the_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(8, 4).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.asarray(noise(8, 4)))


def test_transparency_is_dropped(tmp_path):
    image = noise(6, 5, "RGBA")
    image.save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "alpha.png")), np.asarray(image)[:, :, :3])


def test_the_transparent_colour_of_a_palette_is_kept(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=1)
    assert np.asarray(load_image(tmp_path / "palette.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_grey_becomes_three_equal_channels(tmp_path):
    image = noise(6, 5, "L")
    image.save(tmp_path / "grey.png")
    loaded = load_image(tmp_path / "grey.png")
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image)[:, :, None].repeat(3, axis=2))


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"image file at {tmp_path / 'none.png'}"):
        load_image(tmp_path / "none.png")


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.gif", "text.png", "empty.png", "folder.png"])
def test_a_broken_image_is_named(tmp_path, name):
    path = tmp_path / name
    if name == "folder.png":
        path.mkdir()
    elif name.startswith("cut"):
        noise(64, 64).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("no image" if name == "text.png" else "")
    with pytest.raises(ValueError, match=rf"expected a complete image file .* at {path}: ."):
        load_image(path)


def test_a_missing_processor_configuration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"preprocessor_config\.json .* in {tmp_path}"):
        load_image_processor(tmp_path)


# Prompts


def test_recorded_questions_become_the_recorded_prompt_ids(golden):
    tokenizer = load_tokenizer(golden / "cli" / "llava" / "tiny-llava-v1.5")
    questions = [json.loads(line) for line in (golden / "cli" / "questions.jsonl").read_text().splitlines()]
    records = json.loads((golden / "cli" / "prompts_llava.json").read_text())
    assert len(questions) == len(records) == 13
    for question, record in zip(questions, records, strict=True):
        prompt = build_prompt(question["text"], "vicuna_v1")
        assert prompt == record["prompt_text"]
        assert tokenizer_image_token(prompt, tokenizer) == record["prompt_token_ids"]


IMG = IMAGE_TOKEN_INDEX
PROMPTS = {
    "": [],
    "one two": [5, 6],
    "one<image>two": [5, IMG, 6],
    "<image>": [IMG],
    "<image>one": [IMG, 5],
    "one<image>": [5, IMG],
    "<image><image>one<image>two three<image>": [IMG, IMG, 5, IMG, 6, 7, IMG],
}


@pytest.mark.parametrize(("prompt", "ids"), PROMPTS.items())
def test_only_the_first_part_of_a_prompt_keeps_its_bos(prompt, ids):
    assert tokenizer_image_token(prompt, word_tokenizer(bos=True)) == [1, *ids]


@pytest.mark.parametrize(("prompt", "ids"), PROMPTS.items())
def test_a_prompt_without_bos(prompt, ids):
    assert tokenizer_image_token(prompt, word_tokenizer(bos=False)) == ids


def test_every_part_gets_the_space_of_sentencepiece(golden):
    tokenizer = load_tokenizer(golden / "cli" / "llava" / "tiny-llava-v1.5")
    ids = tokenizer_image_token("the<image>the<image>\nthe", tokenizer)
    the = tokenizer("the").input_ids
    assert ids == [*the, IMG, *the[1:], IMG, *tokenizer("\nthe").input_ids[1:]]
    assert tokenizer.convert_ids_to_tokens(the) == ["<s>", "▁the"]


def test_prompt_ids_as_a_tensor_and_another_placeholder():
    ids = tokenizer_image_token("one<image>two", word_tokenizer(bos=True), image_token_index=9, return_tensors="pt")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [1, 5, 9, 6]


def test_other_tensors_are_refused():
    with pytest.raises(ValueError, match="'pt' or None, got 'np'"):
        tokenizer_image_token("one", word_tokenizer(bos=True), return_tensors="np")


def test_placeholders_of_the_hugging_face_form():
    assert expand_image_tokens([1, IMG, 5, IMG, IMG], 32000, 3) == [1, *[32000] * 3, 5, *[32000] * 6]
    assert expand_image_tokens([1, 5], 32000, 3) == [1, 5]


@given(ids=st.lists(st.sampled_from([IMG, 1, 2, 3])), tokens_per_image=st.integers(1, 4))
def test_placeholders_in_a_tensor_are_those_in_a_list(ids, tokens_per_image):
    tensor = torch.tensor(ids, dtype=torch.long)
    out = expand_image_tokens(tensor, 9, tokens_per_image)
    assert out.dtype == torch.int64
    assert out.tolist() == expand_image_tokens(ids, 9, tokens_per_image)
    assert tensor.tolist() == ids, "the input was changed"


def test_a_batch_of_ids_is_refused():
    with pytest.raises(ValueError, match=r"shape \[N\], got \[1, 2\]"):
        expand_image_tokens(torch.tensor([[1, IMG]]), 9, 2)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/my-run/checkpoint-500/", "my-run_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
    ],
)
def test_the_name_of_a_model(path, name):
    assert get_model_name_from_path(path) == name
