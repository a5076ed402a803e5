"""The shipped model answers as well as the documentation says, in both formats."""

import hashlib
from math import comb
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.eval.answering import Answering, Preparation
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.convert import main as convert
from playground.demo import MODEL
from playground.scenes.files import BLANK, SIDE, benchmark_scenes, write_benchmark
from playground.scenes.questions import KINDS
from playground.scenes.world import GRID
from playground.training.decoder import NUM_PREFIX
from playground.training.packing import Packer, accuracies
from playground.vocabulary import write_tokenizer
from vscan.api import reduce
from vscan.eval.cells import Cell
from vscan.eval.questions import read_questions
from vscan.eval.table import summarise
from vscan.tools.compare import compare

# Of the 336 questions of each kind of the test split, how many it answers rightly (playground/README.md has percents).
NUM_SCENES = 336
RIGHT = {"existence": 335, "attribute": 335, "relation": 336, "counting": 275, "reading": 330, "box": 336}
RARE = 1e-3  # how unlikely a number of right answers has to be, to one side, before it is taken for a worse model


def likely(right: int, drawn: int) -> range:
    """How many of `drawn` questions out of NUM_SCENES may be right if `right` of all are: exact, hypergeometric."""
    weights = [comb(right, number) * comb(NUM_SCENES - right, drawn - number) for number in range(drawn + 1)]
    least = RARE * comb(NUM_SCENES, drawn)
    found = [n for n in range(drawn + 1) if sum(weights[: n + 1]) > least and sum(weights[n:]) > least]
    return range(found[0], found[-1] + 1)


def test_what_chance_allows_is_exact():
    assert likely(336, 16) == range(16, 17)
    assert likely(0, 16) == range(1)
    assert likely(335, 16) == range(15, 17)  # one wrong: with a chance of 16 in 336
    assert likely(168, 2) == range(3)
    assert likely(275, 336) == range(275, 276)


def binomial(number: int, of: int, chance: float) -> float:
    return comb(of, number) * chance**number * (1 - chance) ** (of - number)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_benchmark(folder, "test", 1)
    return folder


@pytest.fixture(scope="module")
def loaded():
    return load_pretrained_model(MODEL, device="cpu")[:3]


@pytest.mark.parametrize("number", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_its_accuracy_on_some_scenes_is_the_stated_one_within_what_chance_allows(loaded, tmp_path, number):
    data = tmp_path / "data"
    write_benchmark(data, "test", number)
    questions = read_questions(data / "questions.jsonl")
    rows = compare(lambda: loaded, [Cell("dense")], questions, data / "images", tmp_path / "out", "tiny", batch_size=24)
    (summary,) = summarise(rows, questions)
    for kind, right in RIGHT.items():
        found, allowed = round(summary.accuracy[kind] / 100 * number), likely(right, number)
        assert found in allowed, f"{kind}: expected {allowed[0]} to {allowed[-1]} of {number} right, got {found}"


def test_both_formats_answer_alike(data, loaded, tmp_path):
    convert([str(MODEL), str(tmp_path / "hf")])
    questions = read_questions(data / "questions.jsonl")
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


@torch.inference_mode()
def test_a_blank_picture_gives_language_alone(loaded):
    tokenizer, model, processor = loaded
    blank = Image.new("RGB", (SIDE, SIDE), (BLANK,) * 3)
    visual, _ = model.encode_images(process_images([blank], processor, model.config))
    # All questions behind one picture: tests/playground/test_training.py shows that they get the logits of their own.
    packer, places = Packer(tokenizer), NUM_PREFIX + torch.arange(GRID**2)[None].float()
    start = torch.tensor([float(NUM_PREFIX + GRID**2)])
    rights, number = dict.fromkeys(KINDS, 0), 32
    scenes = [questions for _, questions, _ in benchmark_scenes("test", number)]
    for first in range(0, number, 8):
        packed = packer([[question for questions in scenes[first : first + 8] for question in questions]], "cpu")
        for kind, share in accuracies(model, packed, visual, places, start).items():
            rights[kind] += round(8 * share)
    assert rights["reading"] == 0
    for kind, chance in KINDS.items():
        # Right by chance alone: so many or more in one of a thousand benchmarks.
        allowed = next(
            n for n in range(number) if sum(binomial(k, number, chance) for k in range(n + 1, number + 1)) < RARE
        )
        assert rights[kind] <= allowed, f"{kind}: expected at most {allowed} of {number} right, got {rights[kind]}"
