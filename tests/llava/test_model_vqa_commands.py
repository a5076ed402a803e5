"""LLaVA's commands for ScienceQA, MMBench and MM-Vet: the published rows, prompts and flags, batches and resuming."""

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import vscan
from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.command import question_parser
from playground.tiny import draw
from vscan.eval.arguments import parse
from vscan.methods.base import Kept, Method

pytestmark = pytest.mark.usefixtures("weights_once")

EMBEDDED = Path(__file__).resolve().parents[2] / "playground" / "models" / "tiny-llava"
REDUCED = ["--visual-token-num", "64", "--layer-list", "[4]", "--image-token-list", "[32]"]
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def flags(question_file, answers_file, *more):
    given = {"--model-path": EMBEDDED, "--question-file": question_file, "--answers-file": answers_file}
    given |= {"--temperature": 0, "--max_new_tokens": 4, "--num-workers": 0, "--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + [*REDUCED, *more]


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.fixture
def picture(tmp_path):
    draw(tmp_path / "5.png", seed=5)
    return tmp_path / "5.png"


def write_table(file, *rows):
    lines = ["\t".join(["index", "question", "hint", "A", "B", "C", "D", "image"])]
    file.write_text("\n".join([*lines, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")


def test_scienceqa(picture, tmp_path):
    asked = {"id": "5", "image": "5.png", "conversations": [{"value": "<image>\nWhy?\nA. x\nB. y"}]}
    text = {"id": "6", "conversations": [{"value": "Why?\nA. x\nB. y"}]}
    (tmp_path / "q.json").write_text(json.dumps([asked, text, asked]))
    command = flags(tmp_path / "q.json", tmp_path / "a.jsonl", "--image_folder", str(tmp_path), "--single_pred_prompt")
    model_vqa_science.main(command)
    rows, stats = read(tmp_path / "a.jsonl"), read(tmp_path / "a.jsonl.stats.jsonl")
    assert [list(row) for row in rows] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 3
    assert [row["question_id"] for row in rows] == ["5", "6", "5"]
    assert rows[0]["prompt"] == f"<image>\nWhy?\nA. x\nB. y{SUFFIX}"
    assert rows[1]["prompt"] == f"Why?\nA. x\nB. y{SUFFIX}"
    assert rows[0]["text"] == rows[2]["text"]
    assert [row["stages"] for row in stats] == [[[0, 64], [4, 32]], [[0, 0]], [[0, 64], [4, 32]]]

    whole = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text(whole[0])
    model_vqa_science.main(command)
    assert (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)[0] == whole[0]
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == [row["text"] for row in rows]
    with pytest.raises(ValueError, match="single_pred_prompt: True, now False"):
        model_vqa_science.main(command[:-1])


def test_mmbench_sees_the_picture_that_its_table_holds(picture, tmp_path):
    image = base64.b64encode(picture.read_bytes()).decode()
    first = ["241", "Which?", "Look.", "one", "two", "", "", image]
    write_table(tmp_path / "q.tsv", first, ["1000241", "Which?", "Look.", "two", "one", "", "", "241"])
    more = ["--all-rounds", "--single-pred-prompt"]
    model_vqa_mmbench.main(flags(tmp_path / "q.tsv", tmp_path / "a.jsonl", *more))
    rows = read(tmp_path / "a.jsonl")
    keys = ["question_id", "round_id", "prompt", "text", "options", "option_char", "answer_id", "model_id", "metadata"]
    assert [list(row) for row in rows] == [keys] * 4
    assert [(row["question_id"], row["round_id"], row["options"], row["option_char"]) for row in rows] == [
        (241, 0, ["one", "two"], ["A", "B"]),
        (241, 1, ["two", "one"], ["B", "A"]),
        (1000241, 0, ["two", "one"], ["A", "B"]),
        (1000241, 1, ["one", "two"], ["B", "A"]),
    ]
    assert rows[0]["prompt"] == "Look.\nWhich?\nA. one\nB. two"
    assert [rows[0]["text"], rows[1]["text"]] == [rows[3]["text"], rows[2]["text"]]
    model_vqa_mmbench.main(flags(tmp_path / "q.tsv", tmp_path / "four.jsonl", *more, "--batch-size", "4"))
    assert [row["text"] for row in read(tmp_path / "four.jsonl")] == [row["text"] for row in rows]

    question = {"question_id": 0, "text": rows[0]["prompt"] + SUFFIX, "image": "5.png"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    folder = ["--image-folder", str(tmp_path)]
    for module in (model_vqa_loader, model_vqa):
        file = tmp_path / f"{module.__name__}.jsonl"
        module.main(flags(tmp_path / "q.jsonl", file, *folder))
        assert read(file)[0]["text"] == rows[0]["text"]


def test_mmbench_asks_in_chinese(picture, tmp_path, monkeypatch):
    write_table(tmp_path / "q.tsv", ["7", "哪个？", "", "一", "None", "", "", base64.b64encode(b"x").decode()])
    asked = []
    monkeypatch.setattr("llava.eval.command.Command.answer", lambda self, questions, *rest: asked.extend(questions))
    model_vqa_mmbench.main(flags(tmp_path / "q.tsv", "a", "--single-pred-prompt", "--lang", "cn"))
    assert [question["text"] for question in asked] == ["哪个？\nA. 一\nB. None\n请直接回答选项字母。"]


def test_chunks_are_cut_before_rotations_are_asked(picture, tmp_path, monkeypatch):
    rows = [[str(index), "Which?", "", "one", "two", "", "", "x"] for index in range(3)]
    write_table(tmp_path / "q.tsv", *rows)
    asked = []
    monkeypatch.setattr("llava.eval.command.Command.answer", lambda self, questions, *rest: asked.extend(questions))
    more = ["--all-rounds", "--num-chunks", "2", "--chunk-idx", "1"]
    model_vqa_mmbench.main(flags(tmp_path / "q.tsv", "a", *more))
    assert [(question["question_id"], question["round_id"]) for question in asked] == [(2, 0), (2, 1)]


def test_a_broken_embedded_picture_is_named(picture, tmp_path):
    image = base64.b64encode(picture.read_bytes()[:200]).decode()
    write_table(tmp_path / "q.tsv", ["241", "Which?", "", "one", "", "", "", image])
    message = "row 0, question 241: expected a complete image file that Pillow can read at the embedded picture"
    with pytest.raises(ValueError, match=message):
        model_vqa_mmbench.main(flags(tmp_path / "q.tsv", tmp_path / "a.jsonl"))


@pytest.mark.parametrize("module", [model_vqa, model_vqa_mmbench, model_vqa_science])
def test_bad_input_is_named_before_a_model_is_loaded(module, picture, tmp_path, capsys):
    folder = [] if module is model_vqa_mmbench else ["--image-folder", str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none"):
        module.main(flags(tmp_path / "none", tmp_path / "a.jsonl", *folder))
    with pytest.raises(ValueError, match="expected a conversation template out of vicuna_v1"):
        module.main(flags(tmp_path / "none", tmp_path / "a.jsonl", *folder, "--conv_mode", "v9"))
    with pytest.raises(ValueError, match="model_base: expected None"):
        module.main(flags(tmp_path / "none", tmp_path / "a.jsonl", *folder, "--model-base", "base"))
    with pytest.raises(SystemExit):
        module.main(flags(tmp_path / "none", tmp_path / "a.jsonl", *folder, "--unknown", "1"))
    assert "unrecognized arguments: --unknown 1" in capsys.readouterr().err


def test_mm_vets_missing_pictures_are_named(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "text": "What?", "image": "v1_0.png"}\n')
    with pytest.raises(FileNotFoundError, match=r"the 1 images .* 1 are missing: v1_0.png"):
        model_vqa.main(flags(tmp_path / "q.jsonl", tmp_path / "a.jsonl", "--image-folder", str(tmp_path)))


@pytest.mark.parametrize(
    ("module", "length"),
    [(model_vqa, 1024), (model_vqa_loader, 128), (model_vqa_mmbench, 1024), (model_vqa_science, 1024)],
)
def test_answers_are_as_long_as_published(module, length, monkeypatch):
    lengths = []

    def note(parser, argv):
        lengths.append(parser.get_default("max_new_tokens"))
        raise ValueError("that is enough")

    monkeypatch.setattr("llava.eval.command.parse", note)
    with pytest.raises(ValueError, match="that is enough"):
        module.main([])
    assert lengths == [length]


def test_both_spellings_are_the_same_flag():
    with_dashes = ["--model-path", "m", "--question-file", "q", "--image-folder", "i", "--answers-file", "a"]
    with_dashes += ["--layer-list", "[2]", "--image-token-list", "[3]", "--conv-mode", "v1", "--num-chunks", "2"]
    underscored = [f"--{word[2:].replace('-', '_')}" if word.startswith("--") else word for word in with_dashes]
    one, other = (parse(question_parser("model_vqa", 1024), argv)[0] for argv in (with_dashes, underscored))
    assert one == other


def test_the_commands_are_imported_without_torch():
    names = ["command", "model_vqa", "model_vqa_loader", "model_vqa_mmbench", "model_vqa_science"]
    names += ["model_vqa_video", "run_inference_video_qa", "run_inference_video_qa_act"]
    names += ["eval_pope", "eval_science_qa", "eval_textvqa"]
    code = f"import sys, {', '.join(f'llava.eval.{name}' for name in names)}"
    code += "\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@dataclass(frozen=True)
class Reading(Method):
    """Keeps the first tokens, and notes what it was given to read."""

    seen: ClassVar[list] = []

    def prepare(self, model, processor):
        assert processor.decode(processor("a word", add_special_tokens=False)["input_ids"]) == "a word"
        return lambda texts: texts

    def encode(self, views, num):
        self.seen.append(views.text)
        return Kept(torch.arange(num).expand(len(views.features), -1))


def test_a_method_that_reads_text_is_given_every_question_about_a_shared_picture(picture, tmp_path, monkeypatch):
    monkeypatch.setitem(vscan.METHODS, "reading", Reading)
    Reading.seen.clear()
    questions = [{"question_id": n, "image": "5.png", "text": text} for n, text in enumerate(["Why?", "Where is it?"])]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    more = ["--image-folder", str(tmp_path), "--method", "reading", "--batch-size", "2"]
    model_vqa_loader.main(flags(tmp_path / "q.jsonl", tmp_path / "a.jsonl", *more))
    assert Reading.seen == [["Why?", "Where is it?"]]
    assert [row["stages"] for row in read(tmp_path / "a.jsonl.stats.jsonl")] == [[[0, 64], [4, 32]]] * 2
