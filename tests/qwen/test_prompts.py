"""A question becomes token ids: the recorded ones, pictures where they belong, and no picture out of thin air."""

import json

import pytest
from PIL import Image

from qwen.eval.answering import Preparation
from qwen.images import UNIT
from qwen.model.builder import load_tokenizer
from vscan.eval.questions import read_questions
from vscan.io.images import ImageFolder, embedded_image

LOADER = (4 * UNIT, 1280 * UNIT)


def preparation(folder, find_image, budget=LOADER):
    from transformers import Qwen2VLImageProcessorPil

    config = json.loads((folder / "config.json").read_text())
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return Preparation(load_tokenizer(folder), processor, config["image_token_id"], find_image, budget)


@pytest.mark.parametrize("suffix", ["", "_large"])
def test_ids_are_the_recorded_ones(golden, suffix):
    folder = golden / "cli"
    prepare = preparation(folder / "qwen" / "tiny-qwen2.5-vl", ImageFolder(str(folder / "images")))
    questions = read_questions(folder / f"questions{suffix}.jsonl")
    records = json.loads((folder / f"prompts_qwen{suffix}.json").read_text())
    for question, record in zip(questions, records, strict=True):
        prompt = prepare(question)
        image = [record["image_pad_id"]] * record["image_pad_count"]
        before, after = record["prompt_token_ids_before_image"], record["prompt_token_ids_after_image"]
        assert prompt.ids == before + image + after, record["question_id"]
        assert prompt.visual_tokens == record["image_pad_count"] == prompt.grid.prod().item() // 4
        assert prompt.resized == (prompt.grid[0, 2] * 14, prompt.grid[0, 1] * 14)


def test_a_question_without_a_picture_has_none(qwen_checkpoint):
    prompt = preparation(qwen_checkpoint, ImageFolder("nowhere"))({"question_id": 0, "text": "Why?"})
    tokenizer = load_tokenizer(qwen_checkpoint)
    assert tokenizer.decode(prompt.ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (prompt.pixels, prompt.grid, prompt.visual_tokens, prompt.resized) == (None, None, 0, None)


@pytest.mark.parametrize("image", [None, "a.png"])
def test_a_picture_that_a_text_pretends_is_refused(qwen_checkpoint, tmp_path, image):
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    prepare = preparation(qwen_checkpoint, ImageFolder(str(tmp_path)))
    number = 0 if image is None else 1
    with pytest.raises(ValueError, match=rf"expected a prompt with {number} image tokens, got {number + 1}"):
        prepare({"question_id": 0, "text": "What is <|image_pad|>?", "image": image})


def test_base64_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected a picture as base64, got 'not base64!'"):
        embedded_image({"image_base64": "not base64!"})
    assert embedded_image({"text": "?"}) is None


def test_a_chat_template_is_found_in_a_file_of_its_own_or_missed(qwen_checkpoint, tmp_path):
    for file in qwen_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"expected a chat template in tokenizer_config\.json, .* got none"):
        load_tokenizer(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(tmp_path).chat_template == template
