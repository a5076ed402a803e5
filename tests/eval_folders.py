"""Small benchmark folders in LLaVA's layout, with drawn pictures: a few questions each, with the traps of real ones.

Every function writes one folder. Its `right` says what is right of each row, so that a test can decide after a model
has answered which rows it got right.
"""

import base64
import json
from pathlib import Path

from PIL import Image

from playground.tiny import draw
from vscan.eval.refcoco import SPLITS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
WORDS = {"a": "a cat", "b": "a dog", "c": "a cow", "d": "None"}
CHOICES = "What is it?\nA. a cat\nB. a dog\nC. a cow\nD. None"


def write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def picture(file: Path, seed: int) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(file, seed)


def question(question_id, image: str, text: str, category: str = "default") -> dict:
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def gqa(folder: Path, right: list[str], images: str = "images") -> None:
    """Ids are strings; `images` may be data/images."""
    asked = [(f"2013{row}", f"n{row % 2}.jpg", f"Is it shape {row}?") for row in range(len(right))]
    for _, image, _ in asked:
        picture(folder / images / image, int(image[1]))
    write_rows(folder / "llava_gqa_testdev_balanced.jsonl", [question(i, image, q + SHORT) for i, image, q in asked])
    gold = {}
    for row, (question_id, image, text) in enumerate(asked):
        types = {"structural": ("verify", "query")[row % 2], "semantic": "attr", "detailed": "any"}
        gold[question_id] = {"question": text, "answer": right[row], "imageId": image[:-4], "isBalanced": True}
        gold[question_id] |= {"types": types, "groups": {"global": None}, "semantic": []}
    write_json(folder / "testdev_balanced_questions.json", gold)


def vqav2(folder: Path, right: list[str]) -> None:
    """`right` is not public; the id list of test2015 has one question more in front."""
    rows = []
    for row in range(len(right)):
        image = f"COCO_test2015_{row % 2:012d}.jpg"
        picture(folder / "test2015" / image, row % 2)
        rows.append(question(1000 + row, image, f"How many in {row}?" + SHORT))
    write_rows(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    write_rows(folder / "llava_vqav2_mscoco_test2015.jsonl", [{**rows[0], "question_id": 999}, *rows])


def science_qa(folder: Path, right: list[str]) -> None:
    """The last question has no picture."""
    entries = []
    for row, letter in enumerate(right):
        entry = {"id": str(4 + row), "conversations": [{"from": "human", "value": CHOICES.replace("it", f"it {row}")}]}
        if row < len(right) - 1:
            entry["image"] = f"{4 + row}/image.png"
            entry["conversations"][0]["value"] = "<image>\nContext: Look.\n" + entry["conversations"][0]["value"]
            picture(folder / "images" / "test" / entry["image"], row)
        entry["conversations"].append({"from": "gpt", "value": letter})
        entries.append(entry)
    write_json(folder / "llava_test_CQM-A.json", entries)


def vizwiz(folder: Path, right: list[str]) -> None:
    """`right` is not public."""
    rows = []
    for row in range(len(right)):
        image = f"VizWiz_test_{row:08d}.jpg"
        picture(folder / "test" / image, row)
        rows.append(question(row, image, "What is this? and what color is it?" + UNANSWERABLE + SHORT))
    write_rows(folder / "llava_test.jsonl", rows)


def textvqa(folder: Path, right: list[list[str]]) -> None:
    """Ids are those of two images, so they repeat; one question has no OCR words; `right` is ten answers each."""
    rows, data = [], []
    for row, answers in enumerate(right):
        image = f"img{row % 2}"
        picture(folder / "train_images" / f"{image}.jpg", row % 2)
        words = "" if row == 1 else "RED, Stop"
        asked = f"What does sign {row} Say?"
        rows.append(question(image, f"{image}.jpg", f"{asked}\nReference OCR token: {words}{SHORT}"))
        data.append({"image_id": image, "question": asked, "answers": answers, "question_id": 100 + row})
    write_rows(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data})


def pope(folder: Path, right: list[str]) -> None:
    """The same number of questions for each of the three splits, whose labels are joined by row."""
    splits = ("adversarial", "random", "popular")
    size = len(right) // len(splits)
    rows, labels = [], {split: [] for split in splits}
    for row, label in enumerate(right):
        split, image = splits[row // size], f"COCO_val2014_{row % 2:012d}.jpg"
        picture(folder / "val2014" / image, row % 2)
        asked = f"Is there a {('ring', 'cross', 'snowboard')[row % 3]} in the image?"
        rows.append(question(row + 1, image, asked + SHORT, split))
        labels[split].append({"question_id": row % size + 1, "image": image, "text": asked, "label": label})
    write_rows(folder / "llava_pope_test.jsonl", rows)
    for split, of_split in labels.items():
        write_rows(folder / "coco" / f"coco_pope_{split}.json", of_split)


def mme(folder: Path, right: list[str], release: str = "MME_Benchmark_release_version") -> None:
    """Two questions an image, whose ids are the same; artwork has folders of its own, existence is flat."""
    rows = []
    for row in range(0, len(right), 2):
        task = ("artwork", "existence")[row // 2 % 2]
        name = f"{row // 2:04d}"
        inner = ("images/", "")[row // 2 % 2]
        image, text = f"{task}/{inner}{name}.jpg", f"{task}/{inner.replace('images', 'questions_answers_YN')}{name}.txt"
        picture(folder / release / image, row)
        asked = [f"Is there a ring in picture {name}?", f"Is there a cross in picture {name}?"]
        rows += [question(image, image, each + SHORT, task) for each in asked]
        lines = [
            f"{each} Please answer yes or no.\t{word}" for each, word in zip(asked, right[row : row + 2], strict=True)
        ]
        (folder / release / text).parent.mkdir(parents=True, exist_ok=True)
        (folder / release / text).write_text("\n".join(lines) + "\n")
    write_rows(folder / "llava_mme.jsonl", rows)


def mmbench(folder: Path, right: list[str], name: str = "mmbench_dev_20230712", what: str = "What is it") -> None:
    """Circular copies behind the questions: rows 0 and 1 are two questions, the next ones their copies in turn.

    One option is the word "None"; copies name the row whose picture they show.
    """
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    lines = ["\t".join([*header, "comment", "split"])]
    for row, letter in enumerate(right):
        index = 241 + row % 2
        picture(folder / "drawn" / f"{index}.png", row % 2)
        image = base64.b64encode((folder / "drawn" / f"{index}.png").read_bytes()).decode() if row < 2 else str(index)
        options = ["a cat", "None", "a dog", "a cow"]
        turn = row // 2
        cells = [str(index + 1000000 * turn), f"{what} {index}?", "Look." * (row % 2)]
        cells += [*options[turn:], *options[:turn], letter, "any", image, "", "kind", "", "dev"]
        lines.append("\t".join(cells))
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def mmbench_cn(folder: Path, right: list[str]) -> None:
    """The same in Chinese."""
    mmbench(folder, right, "mmbench_dev_cn_20231003", "图中是什么")


def mm_vet(folder: Path, right: list[str]) -> None:
    """No suffix; "<AND>" and "<OR>" in right answers are for a judge."""
    rows, gold = [], {}
    for row, answer in enumerate(right):
        image, asked = f"v1_{row}.png", f"What is x in equation {row}?"
        picture(folder / "images" / image, row)
        rows.append({"image": image, "text": asked, "category": "conv", "question_id": row})
        gold[f"v1_{row}"] = {"imagename": image, "question": asked, "answer": answer, "capability": ["ocr", "math"]}
    write_rows(folder / "llava-mm-vet.jsonl", rows)
    write_json(folder / "mm-vet.json", gold)


def seed_bench(folder: Path, right: list[str]) -> None:
    """Images and videos' middle frames in turn."""
    rows, entries = [], []
    for row, letter in enumerate(right):
        kind, image = [("image", f"SEED-Bench-image/{row}_1"), ("video", f"SEED-Bench-video-image/{row}.png")][row % 2]
        picture(folder / "drawn.png", 3)
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes((folder / "drawn.png").read_bytes())
        rows.append(question(row, image, CHOICES.replace("it", f"it {row}") + LETTER))
        entry = {"answer": letter, "data_id": f"{row}_1", "data_type": kind, "question": f"What is it {row}?"}
        entry |= {f"choice_{name}": words for name, words in WORDS.items()}
        entries.append({**entry, "question_id": str(row), "question_type_id": 1 + row % 2})
    write_rows(folder / "llava-seed-bench.jsonl", rows)
    write_json(folder / "SEED-Bench.json", {"question_type": {"Scene": 1, "Action": 2}, "questions": entries})


def docvqa(folder: Path, right: list[list[str]]) -> None:
    """The official file alone, whose images begin with the folder that they lie in; two questions a page."""
    entries = []
    for row, answers in enumerate(right):
        image = f"documents/page_{row % 2}.png"
        picture(folder / image, row % 2)
        entry = {"questionId": 49150 + row, "question": f"What is the ‘total’ in line {row}?", "answers": answers}
        entries.append({**entry, "question_types": ["form", "figure"][: row + 1], "image": image, "data_split": "val"})
    write_json(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": entries})


def infovqa(folder: Path, right: list[list[str]]) -> None:
    """The official file alone, of the release without types of questions; it has other keys than DocVQA's."""
    entries = []
    for row, answers in enumerate(right):
        image = f"{20470 + row % 2}.jpeg"
        picture(folder / "infographicsvqa_images" / image, row % 2)
        entry = {"questionId": 98310 + row, "question": f"How many are in part {row}?", "answers": answers}
        entries.append({**entry, "answer_type": ["single span"], "image_local_name": image, "image_url": "http"})
    write_json(folder / "infographicsVQA_val_v1.0.json", {"data": entries})


def _video(folder: Path, right: list[str]) -> None:
    """Questions about clips, two a clip; answers lie in another order, and the clips are empty files."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    asked = [
        {"video_name": f"clip{row // 2}", "question": f"What happens, {row}?", "question_id": f"v_{row // 2}_{row % 2}"}
        for row in range(len(right))
    ]
    answers = [
        {"answer": text, "type": 0, "question_id": row["question_id"]} for row, text in zip(asked, right, strict=True)
    ]
    write_json(folder / "test_q.json", asked)
    write_json(folder / "test_a.json", answers[::-1])
    for row in asked:
        (folder / "videos" / f"{row['video_name']}.mp4").touch()


tgif = msvd = msrvtt = activitynet = _video


def refcoco(folder: Path, right: list[list[int]]) -> None:
    """All eight splits, each with the same questions; `right` is boxes in pixels."""
    entries = []
    for row, box in enumerate(right):
        image = f"train2014/COCO_train2014_{row:012d}.jpg"
        picture(folder / "images" / image, row)
        with Image.open(folder / "images" / image) as opened:
            width, height = opened.size
        entry = {"image": image, "problem": "?", "normal_caption": "the red one", "solution": box}
        relative = [value / side for value, side in zip(box, (width, height) * 2, strict=True)]
        entries.append({**entry, "normalized_solution": relative, "width": width, "height": height})
    for split in SPLITS:
        write_json(folder / "rec_jsons_processed" / f"{split}.json", entries)
