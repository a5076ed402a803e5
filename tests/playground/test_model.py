"""The shipped model answers as well as the documentation says, in both formats."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from llava.eval.answering import Answering, Preparation
from llava.model.builder import load_pretrained_model
from llava.model.convert import main as convert
from playground.demo import MODEL
from playground.scenes.files import write_benchmark
from playground.vocabulary import write_tokenizer
from vscan.api import reduce
from vscan.eval.cells import Cell
from vscan.eval.questions import read_questions
from vscan.eval.table import summarise
from vscan.tools.compare import compare

# On 2,016 questions of the test split (playground/README.md), in percent.
ACCURACY = {"existence": 99.7, "attribute": 99.7, "relation": 100.0, "counting": 81.8, "reading": 98.2, "box": 100.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_benchmark(folder, "test", 100)
    return folder


@pytest.fixture(scope="module")
def loaded():
    return load_pretrained_model(MODEL, device="cpu")[:3]


def test_its_accuracy_on_100_scenes_is_the_stated_one_within_what_chance_allows(data, loaded, tmp_path):
    questions = read_questions(data / "questions.jsonl")
    rows = compare(lambda: loaded, [Cell("dense")], questions, data / "images", tmp_path, "tiny", batch_size=24)
    (summary,) = summarise(rows, questions)
    for kind, stated in ACCURACY.items():
        share = stated / 100
        # Three standard errors of a share of 100 questions, and two questions for rounding.
        allowed = 3 * np.sqrt(share * (1 - share) / 100) + 0.02
        assert abs(summary.accuracy[kind] / 100 - share) <= allowed, (kind, summary.accuracy)


def test_both_formats_answer_alike(data, loaded, tmp_path):
    convert([str(MODEL), str(tmp_path / "hf")])
    questions = read_questions(data / "questions.jsonl")[:36]
    answers = []
    for tokenizer, model, processor in (loaded, load_pretrained_model(tmp_path / "hf", device="cpu")[:3]):
        for budget in ({}, {"visual_tokens": 96, "layers": {4: 32}}):
            with reduce(model, **budget) as reduction:
                prepare = Preparation.of(
                    model, tokenizer, processor, str(data / "images"), "vicuna_v1", reduction=reduction
                )
                answering = Answering(tokenizer, model, reduction, do_sample=False, max_new_tokens=16)
                answers.append([answer.text for answer in answering([prepare(question) for question in questions])])
    assert answers[:2] == answers[2:]
    assert answers[0] != answers[1]


def test_it_is_small_and_complete():
    files = {file.relative_to(MODEL).as_posix(): file.stat().st_size for file in MODEL.rglob("*") if file.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "training.jsonl", "training.png"} <= set(files)
    assert sum(files.values()) < 15e6


def test_the_tokenizer_is_the_one_that_the_code_makes(tmp_path):
    write_tokenizer(tmp_path)
    digest = [hashlib.sha256(Path(f, "tokenizer.model").read_bytes()).hexdigest() for f in (tmp_path, MODEL)]
    assert digest[0] == digest[1]


def test_a_blank_picture_gives_language_alone(loaded, tmp_path):
    write_benchmark(tmp_path / "blank", "test", 48, blank=True)
    questions = read_questions(tmp_path / "blank" / "questions.jsonl")
    images = tmp_path / "blank" / "images"
    with torch.inference_mode():
        rows = compare(lambda: loaded, [Cell("dense")], questions, images, tmp_path / "out", "tiny", batch_size=24)
    (summary,) = summarise(rows, questions)
    assert summary.accuracy["reading"] == 0
    assert summary.accuracy["box"] <= 5
    assert summary.accuracy["existence"] <= 70
    assert summary.accuracy["attribute"] <= 35
