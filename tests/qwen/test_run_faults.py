"""The Qwen commands meet what can be wrong with questions and runs."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from run_helpers import error_of, flags, read, with_context, write

from playground.tiny import draw
from qwen.eval import model_vqa_loader, model_vqa_mmbench, model_vqa_science, test_refcoco

pytestmark = pytest.mark.usefixtures("weights_once")

CONTEXT = 400  # tokens, of which a picture of the least size has some 270
TEXTS = {
    "What?": None,
    "<|image_pad|>": "expected a prompt with 1 image tokens, got 2: the question's text must not hold any",
    "half \ud800": r"expected a text that UTF-8 can hold, got '\ud800' at character 5: half of a surrogate pair",
    "one two three " * 5000: f"expected a prompt of at most {CONTEXT} tokens, the context of this model, got ",
    "Why?": None,
}


@pytest.fixture(scope="module")
def short(qwen_checkpoint, tmp_path_factory):
    """A checkpoint with a short context."""
    return with_context(qwen_checkpoint, tmp_path_factory.mktemp("models") / "short", CONTEXT)


@pytest.fixture
def data(tmp_path):
    draw(tmp_path / "0.png", seed=0)
    return tmp_path


def check_skipped(file, texts=TEXTS):
    wrong = {row: message for row, message in enumerate(texts.values()) if message}
    skipped = read(f"{file}.skipped.jsonl")
    assert [row["row"] for row in skipped] == list(wrong)
    for row, message in zip(skipped, wrong.values(), strict=True):
        assert row["error"].startswith(message)
    assert [row["row"] for row in read(f"{file}.stats.jsonl")] == [row for row in range(len(texts)) if row not in wrong]


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_a_question_that_cannot_be_asked_is_skipped(short, data, batch_size):
    write(data / "q.jsonl", [{"question_id": row, "text": text, "image": "0.png"} for row, text in enumerate(TEXTS)])
    model_vqa_loader.main(flags(short, data / "q.jsonl", "--on-error", "skip", "--batch-size", batch_size))
    check_skipped(data / "a.jsonl")


def test_it_stops_at_its_row(short, data, monkeypatch, capsys):
    asked = [{"question_id": row, "text": text, "image": "0.png"} for row, text in enumerate(list(TEXTS)[::3])]
    write(data / "q.jsonl", asked)
    error = error_of(model_vqa_loader.main, flags(short, data / "q.jsonl"), monkeypatch, capsys)
    assert error.startswith(f"error: row 1, question 1: expected a prompt of at most {CONTEXT} tokens")
    assert len(read(data / "a.jsonl")) == 1


def test_science_and_refcoco_skip_such_questions_too(short, data):
    entries = [{"id": str(row), "image": "0.png", "conversations": [{"value": t}]} for row, t in enumerate(TEXTS)]
    (data / "q.json").write_text(json.dumps(entries))
    model_vqa_science.main(flags(short, data / "q.json", "--on-error", "skip"))
    check_skipped(data / "a.jsonl")
    entry = {"image": "0.png", "solution": [1, 1, 9, 9], "width": 99, "height": 99}
    (data / "refcoco_val.json").write_text(json.dumps([{**entry, "normal_caption": text} for text in TEXTS]))
    given = {"--model-path": short, "--data-root": data, "--image-root": data, "--output-dir": data / "out"}
    given |= {"--max_new_tokens": 2, "--num-workers": 0, "--device": "cpu", "--on-error": "skip", "--layer-list": "[3]"}
    test_refcoco.main([str(part) for pair in given.items() for part in pair] + ["--datasets", "refcoco_val"])
    assert [row["row"] for row in read(data / "out" / "refcoco_val.jsonl.skipped.jsonl")] == [1, 2, 3]
    assert json.loads((data / "out" / "scores.json").read_text())["all"]["missing"] == 3


def test_mmbench_skips_such_questions_too(short, data):
    image = base64.b64encode((data / "0.png").read_bytes()).decode()
    rows = [f"{row}\t{text}\tone\t{image}" for row, text in enumerate(["What?", "<|image_pad|>", "one two " * 1000])]
    (data / "q.tsv").write_text("\n".join(["index\tquestion\tA\timage", *rows]) + "\n")
    small = ["--max-pixels", "78400", "--min-pixels", "3136"]
    model_vqa_mmbench.main(flags(short, data / "q.tsv", "--on-error", "skip", *small, images=False))
    assert [row["question_id"] for row in read(data / "a.jsonl.skipped.jsonl")] == [1, 2]
    assert [row["question_id"] for row in read(data / "a.jsonl")] == [0]


@pytest.mark.parametrize(
    ("module", "content"),
    [(model_vqa_loader, "\n"), (model_vqa_science, "[]"), (model_vqa_mmbench, "index\tquestion\tA\timage\n")],
)
def test_an_empty_question_file_is_an_error(short, data, monkeypatch, capsys, module, content):
    (data / "q").write_text(content)
    command = flags(short, data / "q", images=module is not model_vqa_mmbench)
    error = error_of(module.main, command, monkeypatch, capsys)
    assert error == f"error: question file {str(data / 'q')!r}: expected at least one question, got none"
    assert not (data / "a.jsonl").exists()


def test_what_changed_between_two_starts_is_named(qwen_checkpoint, data, monkeypatch, tmp_path_factory):
    """And what was only spelled in another way is the same run."""
    folder = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(qwen_checkpoint, folder)
    asked = [{"question_id": row, "text": "What?"} for row in range(2)]
    write(data / "q.jsonl", asked)
    command = flags(folder, data / "q.jsonl", "--image-token-ratio", "0.4")
    model_vqa_loader.main(command)
    before = (data / "a.jsonl").read_bytes()

    monkeypatch.chdir(data)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spelled = flags(folder, Path("q.jsonl"), "--image-token-ratio", "0.4", "--window", "4", "--local_layer", "1")
    at = spelled.index("--device")
    model_vqa_loader.main(spelled[:at] + spelled[at + 2 :] + ["--max-pixels", "1003520"])
    assert (data / "a.jsonl").read_bytes() == before

    def refused(difference, command=command):
        with pytest.raises(ValueError, match=rf"2 rows of another run \({difference}"):
            model_vqa_loader.main(command)
        assert (data / "a.jsonl").read_bytes() == before

    refused("reduction: {}, now {'window': 2}", [*command, "--window", "2"])
    write(data / "q.jsonl", [{**row, "text": "Who?"} for row in asked])
    refused("questions_sha256: ")
    write(data / "q.jsonl", asked)
    (folder / "generation_config.json").write_text("{}")
    refused("checkpoint: {'model/generation_config.json': ")
