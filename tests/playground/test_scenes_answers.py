"""Every answer of the benchmark, worked out again from scenes.jsonl by what the question's words say."""

import hashlib
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from playground.scenes.files import benchmark_scenes, write_benchmark

NUMBER = 80
SHORT = "\nAnswer the question using a single word or phrase."
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: "
KINDS = ["existence", "attribute", "relation", "counting", "reading", "box"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "test"
    write_benchmark(folder, "test", NUMBER)
    return folder


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def the(things, colour=None, shape=None):
    """The one thing of that colour and shape; no question may leave open which one is meant."""
    (found,) = [t for t in things if colour in (None, t["colour"]) and shape in (None, t["shape"])]
    return found


def centre(thing):
    return thing["column"] + thing["width"] / 2, thing["row"] + thing["height"] / 2


def answer(text, things):
    """What a person who sees the things would say."""
    if found := re.fullmatch(rf"Is there (a|an) (\w+) (\w+) in the image\?{SHORT}", text):
        article, colour, shape = found.groups()
        assert (article == "an") == (colour[0] in "aeiou")
        return "yes" if any((t["colour"], t["shape"]) == (colour, shape) for t in things) else "no"
    if found := re.fullmatch(rf"What color is the (\w+)\?{SHORT}", text):
        return the(things, shape=found[1])["colour"]
    if found := re.fullmatch(rf"What shape is the (\w+) object\?{SHORT}", text):
        return the(things, colour=found[1])["shape"]
    relation = "to the left or to the right of|above or below"
    if found := re.fullmatch(rf"Is the (\w+) (\w+) ({relation}) the (\w+) (\w+)\?{SHORT}", text):
        colour, shape, way, other_colour, other_shape = found.groups()
        (x, y), (other_x, other_y) = centre(the(things, colour, shape)), centre(the(things, other_colour, other_shape))
        if "left" in way:
            assert abs(x - other_x) >= 3, "too close to call"
            return "left" if x < other_x else "right"
        assert abs(y - other_y) >= 3, "too close to call"
        return "above" if y < other_y else "below"
    if found := re.fullmatch(rf"How many (\w+) shapes are there\?{SHORT}", text):
        return str(sum(t["colour"] == found[1] and t["shape"] != "sign" for t in things))
    if found := re.fullmatch(rf"How many (\w+) are there\?{SHORT}", text):
        return str(sum(t["shape"] in (found[1].removesuffix("s"), found[1].removesuffix("es")) for t in things))
    if found := re.fullmatch(rf"What does the (\w+) sign say\?{SHORT}", text):
        return the(things, found[1], "sign")["text"]
    found = re.fullmatch(rf"{LOCATE}the (\w+) (\w+)", text)
    thing = the(things, *found.groups())
    sides = thing["column"], thing["row"], thing["column"] + thing["width"], thing["row"] + thing["height"]
    return [round(side / 24, 2) for side in sides]


def test_every_answer_follows_from_the_description(data):
    scenes = {row["image"]: row["things"] for row in read(data / "scenes.jsonl")}
    rows = read(data / "questions.jsonl")
    assert list(scenes) == [f"{number:06d}.png" for number in range(NUMBER)]
    assert [row["image"] for row in rows] == [image for image in scenes for _ in KINDS]
    assert [row["category"] for row in rows] == KINDS * NUMBER
    assert [row["question_id"] for row in rows] == list(range(6 * NUMBER))
    for row in rows:
        assert list(row) == ["question_id", "image", "text", "category", "answer"]
        assert row["answer"] == answer(row["text"], scenes[row["image"]]), row


def test_pope_labels_follow_from_the_description_and_so_do_the_kinds_of_no(data):
    scenes = {row["image"]: row["things"] for row in read(data / "scenes.jsonl")}
    for category in ("random", "popular", "adversarial"):
        for row in read(data / f"pope/coco/coco_pope_{category}.json"):
            things = scenes[row["image"]]
            assert row["label"] == answer(row["text"] + SHORT, things)
            colour, shape = row["text"].split()[3:5]
            if category != "random":
                assert shape in {t["shape"] for t in things}
            if category == "adversarial":
                assert colour in {t["colour"] for t in things if t["shape"] != "sign"}


def test_answers_are_balanced(data):
    answers = defaultdict(Counter)
    for row in read(data / "questions.jsonl"):
        answers[row["category"]][str(row["answer"])] += 1
        if row["category"] == "attribute":
            answers["asked for"][row["text"].split()[1]] += 1
    assert answers["existence"] == dict.fromkeys(("yes", "no"), NUMBER // 2)
    assert answers["relation"] == dict.fromkeys(("left", "right", "above", "below"), NUMBER // 4)
    assert answers["counting"] == dict.fromkeys("0123", NUMBER // 4)
    assert answers["asked for"] == dict.fromkeys(("color", "shape"), NUMBER // 2)
    assert len(answers["attribute"]) == 8 + 6
    assert max(answers["reading"].values()) <= 3


def test_pictures_are_those_of_the_python_interface_and_the_first_scenes_stay_when_there_are_more(data):
    for number, (_, questions, picture) in enumerate(benchmark_scenes("test", 3)):
        assert picture.dtype == np.uint8
        assert (np.asarray(Image.open(data / f"images/{number:06d}.png")) == picture).all()
        rows = read(data / "questions.jsonl")[6 * number : 6 * number + 6]
        assert [(row["category"], row["text"]) for row in rows] == [(q.kind, q.text) for q in questions]
    other = next(iter(benchmark_scenes("test", 1, seed=1)))
    assert other[0] != next(iter(benchmark_scenes("test", 1)))[0]


def test_the_benchmark_is_the_one_that_was_measured(data):
    """If this fails, numbers in the documentation are about another benchmark: numpy or the drawing changed."""
    digest = hashlib.sha256()
    for number in range(8):
        digest.update(np.asarray(Image.open(data / f"images/{number:06d}.png")).tobytes())
    for row in read(data / "questions.jsonl")[:48] + read(data / "pope/llava_pope_test.jsonl")[:16]:
        digest.update(json.dumps(row).encode())
    assert digest.hexdigest() == "fc3e8e5a0a7d4bd96994a8d02c344553349b4ddef7670b6d1745d2a2fb4d1a58"
