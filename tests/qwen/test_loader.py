"""The Qwen loader as a user meets it: batches, shards, resuming, both spellings, and everything that can be wrong."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from two_processes import STARTS, run_two

from playground.tiny import draw
from qwen.eval.model_vqa_loader import main
from qwen.model.builder import load_model
from vscan.eval.arguments import run_command
from vscan.models import family_of

pytestmark = pytest.mark.usefixtures("weights_once")

REDUCED = ["--image-token-ratio", "0.4", "--layer-list", "[3]", "--image-token-ratio-list", "[0.5]"]
TEXTS = ["What is this?", "A longer question,\nwith two lines, about all the shapes.", "Why?\n", "How many?"]
NUM_ROWS = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven questions on four pictures, one of them on none."""
    folder = tmp_path_factory.mktemp("data")
    questions = []
    for number in range(NUM_ROWS):
        draw(folder / f"{number % 4}.png", seed=number % 4)
        questions.append({"question_id": number // 2, "text": TEXTS[number % 4], "image": f"{number % 4}.png"})
    del questions[4]["image"]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def flags(checkpoint, data, answers_file, *more):
    given = {"--model-path": checkpoint, "--question-file": data / "questions.jsonl", "--image-folder": data}
    given |= {"--answers-file": answers_file, "--temperature": 0, "--max_new_tokens": 4, "--num-workers": 0}
    given |= {"--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + list(more)


def answer(checkpoint, data, answers_file, *more):
    main(flags(checkpoint, data, answers_file, *more))
    return [row["text"] for row in read(answers_file)]


@pytest.fixture(scope="module")
def reduced(qwen_checkpoint, data, tmp_path_factory):
    """The answers of one uninterrupted reduced run, and their file."""
    file = tmp_path_factory.mktemp("answers") / "a.jsonl"
    return answer(qwen_checkpoint, data, file, *REDUCED), file


def without_time(rows):
    return [{**row, "answer_id": None, "seconds": None} for row in rows]


def test_rows_have_the_published_keys_and_stats_lie_beside(reduced):
    rows, stats = read(reduced[1]), read(f"{reduced[1]}.stats.jsonl")
    assert [list(row) for row in rows] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 7
    assert [row["question_id"] for row in rows] == [0, 0, 1, 1, 2, 2, 3]
    assert [row["prompt"] for row in rows] == [TEXTS[number % 4] for number in range(NUM_ROWS)]
    assert {row["model_id"] for row in rows} == {"tiny-qwen"}
    assert len(set(reduced[0])) > 3
    for number, row in enumerate(stats):
        total = row["visual_tokens"]
        if number == 4:
            assert (total, row["stages"], "resized" in row) == (0, [[0, 0]], False)
            continue
        width, height = row["resized"]
        assert total == width * height // 28**2
        kept = int(0.4 * total)
        assert row["stages"] == [[0, kept], [3, int(0.5 * kept)]]
    config = json.loads(Path(f"{reduced[1]}.run.json").read_text())
    assert config["reduction"] == {
        "method": "vscan",
        "visual_tokens": 0.4,
        "layers": [[3, 0.5]],
        "positions": "auto",
    }
    assert (config["min_pixels"], config["max_pixels"]) == (4 * 784, 1280 * 784)


@pytest.mark.parametrize("more", [["--batch-size", "3"], ["--batch-size", "16", "--num-workers", "1"]])
def test_batches_and_worker_processes_change_no_answer(qwen_checkpoint, data, reduced, tmp_path, more):
    assert answer(qwen_checkpoint, data, tmp_path / "a.jsonl", *REDUCED, *more) == reduced[0]


def test_other_budgets_give_other_answers_and_a_ratio_of_one_is_dense(qwen_checkpoint, data, reduced, tmp_path):
    dense = answer(qwen_checkpoint, data, tmp_path / "dense.jsonl")
    assert dense != reduced[0]
    assert dense[4] == reduced[0][4]  # text alone
    ones = ["--image-token-ratio", "1", "--layer-list", "[]", "--image-token-ratio-list", "[]"]
    assert answer(qwen_checkpoint, data, tmp_path / "dense.jsonl", *ones) == dense  # the same run: nothing is answered
    assert json.loads((tmp_path / "dense.jsonl.run.json").read_text())["reduction"] is None
    kept = ["--layer-list", "[2]", "--image-token-ratio-list", "[1]"]
    assert answer(qwen_checkpoint, data, tmp_path / "kept.jsonl", *kept) == dense


def test_the_repetition_penalty_of_the_checkpoint_stays_in_force(qwen_checkpoint, data, tmp_path):
    folder = tmp_path / "tiny-qwen"
    shutil.copytree(qwen_checkpoint, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "repetition_penalty": 5.0}))
    long = ["--max_new_tokens", "6"]
    punished = answer(folder, data, tmp_path / "5.jsonl", *long, "--batch-size", "1")
    assert punished != answer(qwen_checkpoint, data, tmp_path / "1.jsonl", *long)
    assert answer(folder, data, tmp_path / "4.jsonl", *long, "--batch-size", "4") == punished  # no filler is punished


def test_both_spellings_and_pixel_bounds(qwen_checkpoint, data, tmp_path):
    pixels = ["--min-pixels", str(9 * 784), "--max-pixels", str(16 * 784)]
    one = answer(qwen_checkpoint, data, tmp_path / "1.jsonl", *REDUCED, *pixels)
    spelled = [part.replace("-", "_").replace("__", "--") for part in [*REDUCED, *pixels]]
    given = flags(qwen_checkpoint, data, tmp_path / "2.jsonl", *spelled)
    given = [part.replace("-", "_").replace("__", "--") if part.startswith("--") else part for part in given]
    main(given)
    assert [row["text"] for row in read(tmp_path / "2.jsonl")] == one
    stats = [row["visual_tokens"] for row in read(tmp_path / "2.jsonl.stats.jsonl")]
    assert all(9 <= number <= 16 for row, number in enumerate(stats) if row != 4)


@pytest.mark.parametrize("cut", [0, 3])
def test_an_interrupted_run_goes_on_where_it_stopped(qwen_checkpoint, data, reduced, tmp_path, cut):
    file = tmp_path / "a.jsonl"
    lines = reduced[1].read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:cut]) + lines[cut][:20])
    for name in ("stats.jsonl", "run.json"):
        Path(f"{file}.{name}").write_bytes(Path(f"{reduced[1]}.{name}").read_bytes())
    assert answer(qwen_checkpoint, data, file, *REDUCED) == reduced[0]
    assert file.read_text().splitlines(keepends=True)[:cut] == lines[:cut]


@pytest.mark.parametrize("start", STARTS)
def test_two_processes_write_the_file_of_one(qwen_checkpoint, data, reduced, tmp_path, start):
    command = flags(qwen_checkpoint, data, tmp_path / "a.jsonl", *REDUCED)
    done = run_two(start, "qwen.eval.model_vqa_loader", command)
    assert done.returncode == 0, done.stderr
    for name in ("a.jsonl", "a.jsonl.stats.jsonl"):
        assert without_time(read(tmp_path / name)) == without_time(read(reduced[1].with_name(name)))
    assert {file.name for file in tmp_path.glob("*")} == {"a.jsonl", "a.jsonl.run.json", "a.jsonl.stats.jsonl"}


def test_chunks_have_the_published_size(qwen_checkpoint, data, reduced, tmp_path):
    texts = []
    for index in range(3):
        chunk = ["--num-chunks", "3", "--chunk-idx", str(index)]
        texts += answer(qwen_checkpoint, data, tmp_path / f"{index}.jsonl", *REDUCED, *chunk)
        assert len(texts) == [3, 6, 7][index]
    assert texts == reduced[0]


def test_beams_and_sampling_run(qwen_checkpoint, data, tmp_path):
    answer(qwen_checkpoint, data, tmp_path / "beams.jsonl", *REDUCED, "--num_beams", "2")
    stages = [row["stages"] for row in read(tmp_path / "beams.jsonl.stats.jsonl")]
    assert len(stages) == NUM_ROWS
    torch.manual_seed(0)
    sampled = flags(qwen_checkpoint, data, tmp_path / "sampled.jsonl", *REDUCED, "--batch-size", "4")
    sampled[sampled.index("--temperature") + 1] = "0.8"
    main(sampled)
    assert len(read(tmp_path / "sampled.jsonl")) == NUM_ROWS


# ------------------------------------------------------------------------------------------------------- what is wrong


def error_of(monkeypatch, capsys, arguments) -> str:
    """Run the command with bad input; returns what it says, which is one line."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["model_vqa_loader", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    bars = re.compile("row/s|s/row|Loading weights|^$")
    printed = [line for line in capsys.readouterr().err.splitlines() if not bars.search(line)]
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    return printed[0]


@pytest.fixture
def husk(qwen_checkpoint, tmp_path):
    """A checkpoint that lacks all weights: what is said about anything else was found before."""
    folder = tmp_path / "husk"
    shutil.copytree(qwen_checkpoint, folder)
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer-list", "[6]"], "layers: expected decoder layers 0 to 5, got 6"),
        (["--layer-list", "[-1]"], "layers: expected a decoder layer of 0 or more, got -1"),
        (["--layer-list", "[2,4]"], "expected one share per layer, got 2 layers [2, 4] and 1 shares [0.5]"),
        (["--layer-list", "3"], "--layer-list: expected a list such as '[16]', or None, got '3'"),
        (["--image-token-ratio-list", "[32]"], "--image-token-ratio-list: expected shares in (0, 1], got 32"),
        (["--image-token-ratio-list", "[0]"], "--image-token-ratio-list: expected shares in (0, 1], got 0"),
        (["--chunk-idx", "1"], "chunk-idx: expected 0 to num-chunks - 1, got 1 of 1"),
        (["--min-pixels", "9999999"], "min_pixels and max_pixels: expected a range with at least 784 pixels"),
    ],
)
def test_a_wrong_value_is_named_before_the_model_is_loaded(husk, data, tmp_path, monkeypatch, capsys, more, message):
    assert message in error_of(monkeypatch, capsys, flags(husk, data, tmp_path / "a.jsonl", *REDUCED, *more))
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--visual_token_num", "96"], "unrecognized arguments: --visual_token_num 96"),
        (["--image-token-ratio", "96"], r"expected a number in \(0, 1\], got '96'"),
        (["--image-token-ratio", "0"], r"expected a number in \(0, 1\], got '0'"),
        (["--method", "fastvlm"], "invalid choice: 'fastvlm'"),
        (["--max-pixels", "many"], "expected an int of at least 1, got 'many'"),
    ],
)
def test_a_wrong_flag_is_named(husk, data, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as caught:
        main(flags(husk, data, tmp_path / "a.jsonl", *more))
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "expected a checkpoint folder with config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON, got "),
        (
            lambda f: change_config(f, model_type="llava"),
            "expected a config with vision_config and one of the model types qwen2_5_vl, got model_type 'llava'",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "expected a tokenizer (tokenizer.json or vocab.json with merges"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "expected preprocessor_config.json, found none"),
        (lambda f: (f / "generation_config.json").write_text("["), "generation_config.json: expected JSON, got "),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "expected a tokenizer that loads, got "),
        (lambda f: (f / "model.safetensors").unlink(), "expected weights (one of model.safetensors, "),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "expected the file's content, got an empty file"),
        (lambda f: None, "expected all weights of the model, "),
    ],
    ids=[
        "no config",
        "no JSON",
        "architecture",
        "no tokenizer",
        "no processor",
        "broken settings",
        "broken tokenizer",
        "no weights",
        "empty weights",
        "no weights inside",
    ],
)
def test_an_incomplete_checkpoint_is_refused(husk, data, tmp_path, monkeypatch, capsys, damage, message):
    damage(husk)
    error = error_of(monkeypatch, capsys, flags(husk, data, tmp_path / "a.jsonl"))
    assert message in error
    assert str(husk) in error


def test_weights_that_lack_some_are_refused(qwen_checkpoint, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(qwen_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected all weights of the model, 1 are missing: .*norm\.weight"):
        load_model(folder, device="cpu")


def test_missing_files_are_named_before_a_model_is_loaded(data, tmp_path):
    def run(name, value):
        given = flags("no checkpoint", data, tmp_path / "a.jsonl")
        given[given.index(name) + 1] = str(value)
        main(given)

    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none"):
        run("--question-file", tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="image folder: expected a folder"):
        run("--image-folder", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"the 4 images .* 4 are missing"):
        run("--image-folder", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint folder with config\.json"):
        run("--temperature", 0)


def test_a_truncated_image_stops_the_command_or_is_skipped(
    qwen_checkpoint, data, reduced, tmp_path, monkeypatch, capsys
):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    command = flags(qwen_checkpoint, tmp_path, tmp_path / "a.jsonl", *REDUCED)
    error = error_of(monkeypatch, capsys, command)
    assert error.startswith("error: row 2, question 1: expected a complete image file that Pillow can read at ")
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == reduced[0][:2]
    main([*command, "--on-error", "skip"])
    assert "2 of 7 rows were skipped" in capsys.readouterr().err
    (tmp_path / "2.png").write_bytes(whole)
    assert answer(qwen_checkpoint, tmp_path, tmp_path / "a.jsonl", *REDUCED) == reduced[0]


def test_the_command_says_what_is_wrong_in_one_line_without_torch(data, tmp_path):
    command = [sys.executable, "-m", "qwen.eval.model_vqa_loader", *flags("none", data, tmp_path / "a.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: model path 'none': expected a checkpoint folder with config.json\n"
    code = "import sys, qwen.eval.model_vqa_loader, qwen.eval.test_refcoco, qwen.eval.model_vqa_mmbench"
    code += "\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("method", ["vscan", "vispruner", "fastervlm"])
def test_help_says_the_defaults_that_the_model_will_have(method, qwen_checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["--help", "--method", method])
    said = " ".join(capsys.readouterr().out.split("hyper-")[1].split())
    settled = family_of(load_model(qwen_checkpoint, device="cpu")).defaults(method)
    assert settled
    for name, value in settled.items():
        shown = "the first with full attention" if name == "local_layer" else str(value)
        assert re.search(rf"--{name}[ ,].*?; default: (.*?)(?: --|$)", said)[1] == shown
