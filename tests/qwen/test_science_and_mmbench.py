"""ScienceQA and MMBench end to end on a tiny random model: their files in, the published rows out, resumable."""

import base64
import json
from pathlib import Path

import pytest

from playground.tiny import draw
from qwen.eval import model_vqa_loader, model_vqa_mmbench, model_vqa_science

pytestmark = pytest.mark.usefixtures("weights_once")

REDUCED = ["--image-token-ratio", "0.4", "--layer-list", "[3]", "--image-token-ratio-list", "[0.5]"]


def flags(checkpoint, question_file, answers_file, *more):
    given = {"--model-path": checkpoint, "--question-file": question_file, "--answers-file": answers_file}
    given |= {"--temperature": 0, "--max_new_tokens": 4, "--num-workers": 0, "--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + [*REDUCED, *more]


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.fixture
def picture(tmp_path):
    draw(tmp_path / "5.png", seed=5)
    return tmp_path / "5.png"


def test_scienceqa(qwen_checkpoint, picture, tmp_path):
    asked = {"id": "5", "image": "5.png", "conversations": [{"value": "<image>\nWhy?\nA. x\nB. y"}]}
    text = {"id": "6", "conversations": [{"value": "Why?\nA. x\nB. y"}]}
    (tmp_path / "q.json").write_text(json.dumps([asked, text, asked]))
    command = flags(qwen_checkpoint, tmp_path / "q.json", tmp_path / "a.jsonl", "--image-folder", str(tmp_path))
    model_vqa_science.main([*command, "--single-pred-prompt"])
    rows, stats = read(tmp_path / "a.jsonl"), read(tmp_path / "a.jsonl.stats.jsonl")
    suffix = "\nAnswer with the option's letter from the given choices directly."
    assert [row["question_id"] for row in rows] == ["5", "6", "5"]
    assert rows[0]["prompt"] == f"<image>\nWhy?\nA. x\nB. y{suffix}"
    assert rows[1]["prompt"] == f"Why?\nA. x\nB. y{suffix}"
    assert rows[0]["text"] == rows[2]["text"]
    assert stats[0]["visual_tokens"] >= 256  # the command's least
    assert stats[1]["visual_tokens"] == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    model_vqa_science.main([*command, "--single-pred-prompt"])
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_mmbench_sees_the_picture_that_its_table_holds(qwen_checkpoint, picture, tmp_path):
    image = base64.b64encode(picture.read_bytes()).decode()
    lines = ["index\tquestion\thint\tA\tB\tC\tD\timage", f"241\tWhich?\tLook.\tone\ttwo\t\t\t{image}"]
    lines += ["1000241\tWhich?\tLook.\ttwo\tone\t\t\t241"]
    (tmp_path / "q.tsv").write_text("\n".join(lines) + "\n")
    small = ["--min-pixels", str(4 * 784), "--max-pixels", str(100 * 784)]
    command = flags(qwen_checkpoint, tmp_path / "q.tsv", tmp_path / "a.jsonl", *small)
    model_vqa_mmbench.main([*command, "--all-rounds", "--single-pred-prompt"])
    rows = read(tmp_path / "a.jsonl")
    assert [(row["question_id"], row["round_id"], row["options"]) for row in rows] == [
        (241, 0, ["one", "two"]),
        (241, 1, ["two", "one"]),
        (1000241, 0, ["two", "one"]),
        (1000241, 1, ["one", "two"]),
    ]
    assert rows[0]["prompt"] == "Look.\nWhich?\nA. one\nB. two"
    assert [rows[0]["text"], rows[1]["text"]] == [rows[3]["text"], rows[2]["text"]]

    text = rows[0]["prompt"] + "\nAnswer with the option's letter from the given choices directly."
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 0, "text": text, "image": "5.png"}) + "\n")
    folder = ["--image-folder", str(tmp_path)]
    model_vqa_loader.main(flags(qwen_checkpoint, tmp_path / "q.jsonl", tmp_path / "b.jsonl", *small, *folder))
    assert read(tmp_path / "b.jsonl")[0]["text"] == rows[0]["text"]


def test_a_broken_embedded_picture_is_named(qwen_checkpoint, picture, tmp_path):
    image = base64.b64encode(picture.read_bytes()[:200]).decode()
    (tmp_path / "q.tsv").write_text(f"index\tquestion\tA\timage\n241\tWhich?\tone\t{image}\n")
    message = "row 0, question 241: expected a complete image file that Pillow can read at the embedded picture"
    with pytest.raises(ValueError, match=message):
        model_vqa_mmbench.main(flags(qwen_checkpoint, tmp_path / "q.tsv", tmp_path / "a.jsonl"))


def test_mmbench_takes_no_folder(qwen_checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        model_vqa_mmbench.main(flags(qwen_checkpoint, "q", "a", "--image-folder", "f"))
    assert "unrecognized arguments: --image-folder f" in capsys.readouterr().err
