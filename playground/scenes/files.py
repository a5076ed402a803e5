"""The drawn benchmark as files: its own question file, and the same scenes in the formats of the real benchmarks.

Contents of the folder; folders of images are links to images/:
    arguments.json      what it was written with
    images/             000000.png, ...
    scenes.jsonl        what every picture shows
    pope/  gqa/  textvqa/  refcoco/  counting/      as in LLaVA's playground/data/eval and in VLM-R1
    questions.jsonl     six questions a scene, with answers; written last
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from .picture import PATCH, draw
from .questions import Question, absent, is_there, one_of_each
from .world import GRID, SPLITS, Scene, draw_scene, pick, source

SIDE = GRID * PATCH  # of a picture, in pixels
BLANK = 122  # grey of a picture that shows nothing, the middle of the grounds
# POPE's categories, and what its question file has before the numbers from 1 of each.
POPE = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
Asked = list[tuple[dict, Question]]  # rows of questions.jsonl and what they were made from


def benchmark_scenes(split: str, number: int, seed: int = 0) -> Iterator[tuple[Scene, list[Question], np.ndarray]]:
    """The scenes of a benchmark, each from random numbers of its own: more of them leave the first as they are.

    Args:
        split: "train", "validation" or "test".
        number: of scenes.
        seed: another one gives another benchmark.

    Yields:
        scene, its questions in the order of KINDS, its picture as uint8 [96, 96, 3].
    """
    for index in range(number):
        chance, questions = source(split, seed, index), None
        while questions is None:
            scene = draw_scene(chance, split)
            questions = one_of_each(scene, index, chance)
        yield scene, questions, draw(scene, chance)


def write_benchmark(out: Path, split: str, number: int, seed: int = 0, blank: bool = False) -> None:
    """Write a benchmark; the same arguments give the same files. One that is whole is left alone.

    Args:
        out: folder to make; one that was begun with the same arguments is finished.
        split, number, seed: as for `benchmark_scenes`.
        blank: ask the same about grey pictures, for what language alone gets right.

    Raises:
        FileExistsError: for a folder with something else in it.
        ValueError: for a split that is none, or no scenes.
    """
    if split not in SPLITS or number < 1:
        raise ValueError(f"expected one of {', '.join(SPLITS)} and at least 1 scene, got {split!r} and {number!r}")
    _claim(out, {"split": split, "number": number, "seed": seed, "blank": blank})
    if (out / "questions.jsonl").exists():
        return
    (out / "images").mkdir(exist_ok=True)
    scenes: dict[str, Scene] = {}
    asked: Asked = []
    for scene, questions, picture in benchmark_scenes(split, number, seed):
        image = f"{len(scenes):06d}.png"
        Image.fromarray(np.full_like(picture, BLANK) if blank else picture).save(out / "images" / image)
        scenes[image] = scene
        asked += [(_row(len(asked) + place, image, question), question) for place, question in enumerate(questions)]
    _write_rows(
        out / "scenes.jsonl",
        ({"image": image, "things": list(map(asdict, scene.things))} for image, scene in scenes.items()),
    )
    _write_pope(out, scenes, split, seed)
    for kinds, write in (
        (("attribute", "relation"), _write_gqa),
        (("reading",), _write_textvqa),
        (("box",), _write_refcoco),
        (("counting",), _write_counting),
    ):
        write(out, [pair for pair in asked if pair[1].kind in kinds])
    _write_rows(out / "questions.jsonl.part", (row for row, _ in asked))
    os.replace(out / "questions.jsonl.part", out / "questions.jsonl")


def _claim(out: Path, arguments: dict) -> None:
    """Make the folder, or see that it is ours, begun with the same arguments."""
    record, text = out / "arguments.json", json.dumps(arguments) + "\n"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(text)
    elif not record.is_file() or record.read_text() != text:
        raise FileExistsError(f"expected an empty folder or one begun with the same arguments, got {str(out)!r}")


def _row(question_id: int, image: str, question: Question) -> dict:
    """A row of questions.jsonl; a box is the numbers that the answer's text has."""
    answer = json.loads(question.answer) if question.kind == "box" else question.answer
    return {
        "question_id": question_id,
        "image": image,
        "text": question.text,
        "category": question.kind,
        "answer": answer,
    }


def _write_rows(file: Path, rows) -> None:
    """One JSON object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def _write_json(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content) + "\n")


def _link(out: Path, folder: str) -> None:
    """Let `folder` be the folder of images."""
    link = out / folder
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(out / "images", link.parent))


def _question(question_id: int | str, image: str, text: str, category: str = "default") -> dict:
    """A row as LLaVA's question files have it."""
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def _write_pope(out: Path, scenes: dict[str, Scene], split: str, seed: int) -> None:
    """A yes and a no for each scene and category; labels are joined by row order.

    Scenes where every shape is there in every colour have no adversarial question.
    """
    asked: dict[str, list[tuple[str, str, str]]] = {category: [] for category in POPE}
    for index, (image, scene) in enumerate(scenes.items()):
        # Numbers of its own, so that what is asked here leaves the scenes and their questions alone.
        chance = np.random.default_rng([SPLITS[split], seed, index, 1])
        present = pick(chance, scene.shapes).name
        for category, names in absent(scene).items():
            if names:
                asked[category] += [(image, present, "yes"), (image, pick(chance, names), "no")]
    questions = []
    for category, start in POPE.items():
        labels = []
        for number, (image, name, label) in enumerate(asked[category], start=1):
            question = is_there(name)
            questions.append(_question(start + number, image, question, category))
            text = question.split("\n")[0]
            labels.append({"question_id": number, "image": image, "text": text, "label": label})
        _write_rows(out / f"pope/coco/coco_pope_{category}.json", labels)
    _write_rows(out / "pope/llava_pope_test.jsonl", questions)
    _link(out, "pope/val2014")


def _write_gqa(out: Path, asked: Asked) -> None:
    """Attributes are open questions ("query"), relations name the two answers ("choose")."""
    questions, gold = [], {}
    for row, question in asked:
        question_id, text = str(row["question_id"]), question.text.split("\n")[0]
        is_open = question.kind == "attribute"
        asked_for = text.split()[1] if is_open else "rel"
        steps = [{"operation": "select", "argument": thing.name, "dependencies": []} for thing in question.about]
        last = {"operation": "query" if is_open else "choose", "argument": asked_for}
        gold[question_id] = {
            "question": text,
            "answer": question.answer,
            "imageId": Path(row["image"]).stem,
            "isBalanced": True,
            "types": {
                "structural": last["operation"],
                "semantic": "attr" if is_open else "rel",
                "detailed": "directOf" if is_open else "relChooser",
            },
            "groups": {"global": asked_for if is_open else None, "local": None},
            "semantic": [*steps, {**last, "dependencies": list(range(len(steps)))}],
            "entailed": [],
            "equivalent": [question_id],
        }
        questions.append(_question(question_id, row["image"], question.text))
    _write_rows(out / "gqa/llava_gqa_testdev_balanced.jsonl", questions)
    _write_json(out / "gqa/data/testdev_balanced_questions.json", gold)
    _link(out, "gqa/data/images")


def _write_textvqa(out: Path, asked: Asked) -> None:
    """Without the line of OCR tokens, which would give the answer away: the scorer knows prompts of two lines too."""
    questions, gold = [], []
    for row, question in asked:
        image_id = Path(row["image"]).stem
        questions.append(_question(image_id, row["image"], question.text))
        gold.append(
            {
                "question": question.text.split("\n")[0],
                "image_id": image_id,
                "image_width": SIDE,
                "image_height": SIDE,
                "answers": [question.answer] * 10,
                "question_id": row["question_id"],
                "set_name": "val",
            }
        )
    _write_rows(out / "textvqa/llava_textvqa_val_v051_ocr.jsonl", questions)
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    _write_json(out / "textvqa/TextVQA_0.5.1_val.json", {**head, "data": gold})
    _link(out, "textvqa/train_images")


def _write_refcoco(out: Path, asked: Asked) -> None:
    """VLM-R1's file of boxes in pixels, and a question file with LLaVA's prompt."""
    questions, boxes = [], []
    for row, question in asked:
        image, thing = f"train2014/{row['image']}", question.about[0]
        questions.append(_question(row["question_id"], image, question.text))
        boxes.append(
            {
                "image": image,
                "problem": question.text,
                "normal_caption": f"the {thing.name}",
                "solution": [patches * PATCH for patches in thing.box],
                "normalized_solution": [patches / GRID for patches in thing.box],
                "width": SIDE,
                "height": SIDE,
            }
        )
    _write_rows(out / "refcoco/llava_refcoco_val.jsonl", questions)
    _write_json(out / "refcoco/rec_jsons_processed/refcoco_val.json", boxes)
    _link(out, "refcoco/train2014")


def _write_counting(out: Path, asked: Asked) -> None:
    """A question file and its answers, plain."""
    rows = [row for row, _ in asked]
    _write_rows(
        out / "counting/questions.jsonl", (_question(row["question_id"], row["image"], row["text"]) for row in rows)
    )
    _write_rows(
        out / "counting/answers.jsonl", ({"question_id": row["question_id"], "answer": row["answer"]} for row in rows)
    )
    _link(out, "counting/images")
