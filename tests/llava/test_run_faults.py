"""LLaVA's commands meet what can be wrong with questions and runs; the same cases as Qwen's."""

import base64
import json
import shutil
import time
from pathlib import Path

import pytest
from run_helpers import error_of, flags, read, with_context, write

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from playground.tiny import draw

pytestmark = pytest.mark.usefixtures("weights_once")

CONTEXT = 268  # tokens, of which 144 are a picture's
LONG = "one two three " * 5000


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return small_checkpoint


@pytest.fixture(scope="module")
def short(checkpoint):
    """A checkpoint with a short context."""
    return with_context(checkpoint, checkpoint.parent / "short", CONTEXT)


@pytest.fixture
def data(tmp_path):
    draw(tmp_path / "0.png", seed=0)
    return tmp_path


TEXTS = {
    "What?": None,
    "<image>\nWhat?": "expected a prompt with 1 images, got 2: the question's text must not hold <image>",
    "half \ud800": r"expected a text that UTF-8 can hold, got '\ud800' at character 5: half of a surrogate pair",
    "word " * (CONTEXT - 144): f"expected a prompt of at most {CONTEXT} tokens, the context of this model, got ",
    LONG: f"expected a prompt of at most {CONTEXT} tokens, the context of this model, got ",
    "Why?": None,
}


def check_rows(file):
    """All but those of TEXTS that cannot be answered are there; the others are noted."""
    wrong = [row for row, message in enumerate(TEXTS.values()) if message]
    assert [row["row"] for row in read(f"{file}.stats.jsonl")] == [0, 5]
    skipped = read(f"{file}.skipped.jsonl")
    assert [(row["row"], int(row["question_id"])) for row in skipped] == [(row, row // 2) for row in wrong]
    for row, message in zip(skipped, filter(None, TEXTS.values()), strict=True):
        assert row["error"].startswith(message)


def test_a_question_that_cannot_be_asked_stops_at_its_row(short, data, monkeypatch, capsys):
    questions = [{"question_id": row // 2, "text": text, "image": "0.png"} for row, text in enumerate(TEXTS)]
    for row, message in enumerate(TEXTS.values()):
        if message:
            write(data / "q.jsonl", [questions[0], questions[row]])
            begun = time.perf_counter()
            error = error_of(model_vqa_loader.main, flags(short, data / "q.jsonl"), monkeypatch, capsys)
            assert error.startswith(f"error: row 1, question {row // 2}: {message}")
            assert time.perf_counter() - begun < 30  # a model that answers so many words goes on for minutes
            assert len(read(data / "a.jsonl")) == 1
            (data / "a.jsonl").unlink()


@pytest.mark.parametrize(("module", "batch_size"), [(model_vqa_loader, "1"), (model_vqa_loader, "4"), (model_vqa, "1")])
def test_a_question_that_cannot_be_asked_is_skipped(short, data, module, batch_size):
    write(
        data / "q.jsonl", [{"question_id": row // 2, "text": text, "image": "0.png"} for row, text in enumerate(TEXTS)]
    )
    module.main(flags(short, data / "q.jsonl", "--batch-size", batch_size, "--on-error", "skip"))
    check_rows(data / "a.jsonl")


def test_science_skips_such_questions_too(short, data):
    entries = [
        {"id": str(row // 2), "image": "0.png", "conversations": [{"value": text}]} for row, text in enumerate(TEXTS)
    ]
    entries[1]["conversations"][0]["value"] = "What?"  # its file has "<image>" in front of questions
    (data / "q.json").write_text(json.dumps(entries))
    model_vqa_science.main(flags(short, data / "q.json", "--on-error", "skip"))
    assert [row["row"] for row in read(data / "a.jsonl.skipped.jsonl")] == [2, 3, 4]
    assert [row["row"] for row in read(data / "a.jsonl.stats.jsonl")] == [0, 1, 5]


def test_mmbench_skips_such_questions_too(short, data):
    image = base64.b64encode((data / "0.png").read_bytes()).decode()
    rows = [f"{row}\t{text.strip()}\tone\t{image}" for row, text in enumerate(["What?", "<image>", "word " * 200])]
    (data / "q.tsv").write_text("\n".join(["index\tquestion\tA\timage", *rows]) + "\n")
    model_vqa_mmbench.main(flags(short, data / "q.tsv", "--on-error", "skip", images=False))
    assert [row["question_id"] for row in read(data / "a.jsonl.skipped.jsonl")] == [1, 2]
    assert [row["question_id"] for row in read(data / "a.jsonl")] == [0]


def test_a_name_that_leaves_the_folder_is_skipped(short, data):
    write(data / "q.jsonl", [{"question_id": 0, "text": "?", "image": "../0.png"}])
    model_vqa_loader.main(flags(short, data / "q.jsonl", "--on-error", "skip"))
    assert "inside the image folder" in read(data / "a.jsonl.skipped.jsonl")[0]["error"]


@pytest.mark.parametrize(
    ("module", "content"),
    [
        (model_vqa_loader, "\n"),
        (model_vqa, ""),
        (model_vqa_science, "[]"),
        (model_vqa_mmbench, "index\tquestion\tA\timage\n"),
    ],
)
def test_an_empty_question_file_is_an_error(short, data, monkeypatch, capsys, module, content):
    (data / "q").write_text(content)
    command = flags(short, data / "q", images=module is not model_vqa_mmbench)
    error = error_of(module.main, command, monkeypatch, capsys)
    assert error == f"error: question file {str(data / 'q')!r}: expected at least one question, got none"
    assert not (data / "a.jsonl").exists()


def test_an_id_that_is_no_number_is_refused_in_science(short, data, monkeypatch, capsys):
    (data / "q").write_text('[{"id": NaN, "conversations": [{"value": "?"}]}]')
    error = error_of(model_vqa_science.main, flags(short, data / "q"), monkeypatch, capsys)
    assert error == f"error: {data / 'q'}, entry 0: expected a question id with finite numbers, got nan"
    assert not (data / "a.jsonl").exists()


def test_questions_a_model_and_spellings(checkpoint, data, monkeypatch, tmp_path_factory):
    """What was changed between two starts is named; what was only spelled in another way is the same run."""
    folder = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(checkpoint, folder)
    asked = [{"question_id": row, "text": "What?", "image": "0.png"} for row in range(2)]
    write(data / "q.jsonl", asked)
    reduced = ["--visual_token_num", "96"]
    command = flags(folder, data / "q.jsonl", *reduced)
    model_vqa_loader.main(command)
    before = (data / "a.jsonl").read_bytes()

    monkeypatch.chdir(data)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spelled = flags(folder, Path("q.jsonl"), *reduced, "--window", "6", "--positions", "auto", "--num_beams", "1")
    at = spelled.index("--device")
    model_vqa_loader.main(spelled[:at] + spelled[at + 2 :])
    assert (data / "a.jsonl").read_bytes() == before

    def refused(difference, command=command):
        with pytest.raises(ValueError, match=rf"2 rows of another run \({difference}"):
            model_vqa_loader.main(command)
        assert (data / "a.jsonl").read_bytes() == before

    refused("reduction: {}, now {'window': 4}", [*command, "--window", "4"])
    write(data / "q.jsonl", [{**row, "text": "Who?"} for row in asked])
    refused("questions_sha256: ")
    write(data / "q.jsonl", asked)
    content = (folder / "clip_tower" / "model.safetensors").read_bytes()
    (folder / "clip_tower" / "model.safetensors").write_bytes(content)
    refused("checkpoint: {'clip_tower/model.safetensors': ")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "got RANK=1"),
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "variable RANK: expected a number of 0 or more, got 'abc'"),
    ],
)
def test_variables_that_say_no_rank_are_named(short, data, monkeypatch, capsys, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write(data / "q.jsonl", [{"question_id": 0, "text": "?"}])
    assert error_of(model_vqa_loader.main, flags(short, data / "q.jsonl"), monkeypatch, capsys).endswith(message)
