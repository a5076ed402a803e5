"""Video-LLaVA's files against recorded ones: frames, pixels, prompts, and the answers of the published command.

GOLDEN_VIDEO=DIR takes videos, pictures and answers from another folder of the same layout; models stay those of the
recorded data.
"""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.eval import run_inference_video_qa, run_inference_video_qa_act
from llava.eval.answering import Preparation
from llava.tokenizer import LlamaSentencePieceTokenizer, load_tokenizer
from llava.video import ClipProcessor, choose_frames, read_clip
from vscan.io.frames import PREFIXES, ClipFolder


@pytest.fixture(scope="module")
def data(golden):
    """The folder with `video_llava` and `video_llava_hf` that cases come from."""
    return Path(os.environ.get("GOLDEN_VIDEO", golden))


@pytest.fixture(scope="module")
def models(golden):
    """The checkpoints, by the name of the folder that they lie in."""
    return {
        "video_llava": golden / "video_llava" / "tiny-video-llava",
        "video_llava_hf": golden / "video_llava_hf" / "tiny-video-llava-hf",
    }


def index(folder, name):
    """An index file's content; no such file is no case."""
    if not (folder / name).is_file():
        pytest.skip(f"{folder.name} has no {name}")
    return json.loads((folder / name).read_text())


def clip_of(data, name):
    (file,) = (file for file in (data / "video_llava" / "videos").iterdir() if file.stem == name)
    return file


def digest(pixels):
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def cut(pixels, end):
    """The part of pixels [..., H, W] that is recorded under this ending."""
    if end == "samples":
        return pixels[..., 7::16, 5::16]
    return pixels[..., :6, -6:] if end == "corner" else pixels.mean(dim=(-2, -1))


def check_parts(recorded, name, pixels, atol):
    """Every recorded part of some pixels is what we made."""
    ends = [key.removeprefix(f"{name}.") for key in recorded if key.startswith(f"{name}.")]
    assert {"samples", "corner"} <= set(ends)
    for end in ends:
        least = max(atol, 1e-6) if "mean" in end else atol  # sums depend on their order
        torch.testing.assert_close(cut(pixels, end), recorded[f"{name}.{end}"], rtol=0, atol=least)


def test_the_frames_are_those_that_the_published_reader_returned(data):
    for name, case in index(data / "video_llava", "preprocess_video.json").items():
        assert choose_frames(case["num_frames"]) == case["frame_ids"], name
        frames = np.stack([np.asarray(frame) for frame in read_clip(clip_of(data, name))])
        assert list(frames.shape) == [8, *case["frame_hw"], 3], name
        with Image.open(data / "video_llava" / "frames" / f"{name}.png") as strip:
            assert np.array_equal(np.asarray(strip).reshape(frames.shape), frames), name


def test_a_clip_becomes_the_published_pixels_bit_for_bit(data):
    cases = index(data / "video_llava", "preprocess_video.json")
    recorded = load_file(data / "video_llava" / "preprocess_video.safetensors")
    for name, case in cases.items():
        pixels = ClipProcessor().video(read_clip(clip_of(data, name)))
        assert (pixels.dtype, list(pixels.shape)) == (torch.float32, [3, 8, 224, 224])
        assert digest(pixels) == case["pixel_sha256_f32"], name
        check_parts(recorded, name, pixels, atol=0)


def test_a_picture_becomes_the_published_pixels_padded_or_not(data):
    cases = index(data / "video_llava", "preprocess_image.json")
    recorded = load_file(data / "video_llava" / "preprocess_image.safetensors")
    for case, facts in cases.items():
        name, mode = case.rsplit(".", 1)
        with Image.open(data / "video_llava" / "images" / f"{name}.png") as image:
            assert list(image.size) == facts["size_wh"]
            pixels = ClipProcessor().image(image, pad=mode == "pad")
        check_parts(recorded, case, pixels, atol=2e-6)
        if facts["size_wh"] == [224, 224]:
            assert digest(pixels) == facts["sha256_f32"], case


def test_hugging_faces_checkpoints_get_the_pixels_of_its_own_processor(data, models):
    cases = index(data / "video_llava_hf", "preprocess.json")
    recorded = load_file(data / "video_llava_hf" / "preprocess.safetensors")
    processor = ClipProcessor.of(models["video_llava_hf"])
    for name, case in cases.items():
        if "pixel_values_videos_shape" in case:
            pixels = processor.video(read_clip(clip_of(data, name))).transpose(0, 1)
        else:
            with Image.open(data / "video_llava" / "images" / f"{name}.png") as image:
                pixels = processor.image(image)
        assert digest(pixels) == case["sha256_f32"], name
        check_parts(recorded, name, pixels, atol=0)


@pytest.mark.parametrize("kind", ["video_llava", "video_llava_hf"])
def test_a_question_becomes_the_recorded_ids_by_either_tokenizer(data, models, kind):
    folder = data / "video_llava"
    tokens = index(folder / "qa", "tokens.json")
    # A config and a method tell a Video-LLaVA in the original format.
    model = SimpleNamespace(config=SimpleNamespace(model_type="llava", mm_video_tower="a name"), encode_images=None)
    clips = ClipFolder(str(folder / "videos"), PREFIXES)
    prepare = Preparation.of(model, load_tokenizer(models[kind]), None, clips, "llava_v1")
    asked = {question["question_id"]: question for question in index(folder / "qa", "test_q.json")}
    for name, recorded in tokens.items():
        prompt = prepare({"video": asked[name]["video_name"], "text": asked[name]["question"]})
        assert prompt.ids == recorded["input_ids"], name
        assert prompt.num_frames == 8


def command_of(tokens, asked):
    """The published command for these questions: ActivityNet's where the clips have its prefix."""
    names = {question["question_id"]: question["video_name"] for question in asked}
    prefixed = {Path(recorded["file"]).stem == f"v_{names[key]}" for key, recorded in tokens.items()}
    return run_inference_video_qa_act if prefixed == {True} else run_inference_video_qa


@pytest.fixture
def generated(monkeypatch):
    """The ids of every answer that is decoded, in their order."""
    seen, decode = [], LlamaSentencePieceTokenizer.batch_decode

    def spy(self, sequences, **options):
        seen.extend(sequences.tolist())
        return decode(self, sequences, **options)

    monkeypatch.setattr(LlamaSentencePieceTokenizer, "batch_decode", spy)
    return seen


def test_two_chunks_of_the_published_command_are_the_recorded_answers_of_one(data, models, generated, tmp_path, capsys):
    """By token ids first. The published command's second chunk has the right answers of other questions."""
    folder = data / "video_llava"
    tokens, asked = (index(folder / "qa", f"{name}.json") for name in ("tokens", "test_q"))
    missing = [question for question in asked if question["question_id"] not in tokens]
    command, lines = command_of(tokens, asked), []
    for number in range(2):
        given = {"--model_path": models["video_llava"], "--cache_dir": tmp_path, "--video_dir": folder / "videos"}
        given |= {f"--gt_file_{what}": folder / "qa" / f"test_{what[0]}.json" for what in ("question", "answers")}
        given |= {"--output_dir": tmp_path / "out", "--output_name": f"2_{number}", "--num_chunks": 2}
        given |= {"--chunk_idx": number, "--device": "cpu", "--num-workers": 0}
        given |= {"--max_new_tokens": len(next(iter(tokens.values()))["generated"])}
        command.main([str(part) for pair in given.items() for part in pair])
        lines += (tmp_path / "out" / f"2_{number}.json").read_text().splitlines(keepends=True)
    ids = [json.loads(line)["id"] for line in lines]
    assert ids == [question["question_id"] for question in asked if question not in missing]
    assert generated == [tokens[name]["generated"] for name in ids]
    assert "".join(lines) == (folder / "qa" / "answers" / "merge.jsonl").read_text()
    names = {question["video_name"] for question in missing}
    said = [line for line in capsys.readouterr().err.splitlines() if "clips are missing" in line]
    assert {name for line in said for name in line.rpartition(": ")[2].split(", ")} == names

    ours = list(map(json.loads, lines))
    for name, key in {"answers_2chunks": "answer", "answers_flipped": "pred"}.items():
        if (folder / "qa" / name).is_dir():  # what these rows differ in, and in nothing else
            rows = [json.loads(row) for row in (folder / "qa" / name / "merge.jsonl").read_text().splitlines()]
            assert rows != ours
            assert [{**row, key: ""} for row in rows] == [{**row, key: ""} for row in ours]
