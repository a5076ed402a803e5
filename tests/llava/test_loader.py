"""The loader as a user meets it: batches, formats, resuming, chunks, and everything that can be wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import to_hugging_face
from PIL import Image

from llava.eval.model_vqa_loader import main
from llava.model.builder import load_model
from playground.tiny import draw

pytestmark = pytest.mark.usefixtures("weights_once")

REDUCED = ["--visual_token_num", "24", "--layer_list", "[4]", "--image_token_list", "[8]"]
TEXTS = [
    "What is this?",
    " A longer question,\nwith two lines, about the colours of all the shapes.",
    "Why?\n",
    "How many?",
]


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return small_checkpoint


@pytest.fixture(scope="module")
def hugging_face(checkpoint):
    """The same weights in the Hugging Face format, with one more token for the image."""
    original = load_model(checkpoint, device="cpu")
    image_token = original.config.vocab_size
    original.resize_token_embeddings(image_token + 1, mean_resizing=False)
    original.lm_head.weight.data[image_token] = 0
    folder = checkpoint.parent / "tiny-llava-hf"
    to_hugging_face(original, image_token).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    (folder / "preprocessor_config.json").write_bytes(
        (checkpoint / "clip_tower" / "preprocessor_config.json").read_bytes()
    )
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven questions on four pictures, one of them on none."""
    folder = tmp_path_factory.mktemp("data")
    questions = []
    for number in range(7):
        draw(folder / f"{number % 4}.png", seed=number % 4)
        questions.append({"question_id": number // 2, "text": TEXTS[number % 4], "image": f"{number % 4}.png"})
    del questions[5]["image"]
    write(folder / "questions.jsonl", questions)
    return folder


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
def reduced(checkpoint, data, tmp_path_factory):
    """The answers of one uninterrupted reduced run, and their file."""
    file = tmp_path_factory.mktemp("answers") / "a.jsonl"
    return answer(checkpoint, data, file, *REDUCED), file


def test_rows_have_the_published_keys_and_stats_lie_beside(reduced, data):
    rows, stats = read(reduced[1]), read(f"{reduced[1]}.stats.jsonl")
    assert [list(row) for row in rows] == [["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]] * 7
    assert [row["question_id"] for row in rows] == [0, 0, 1, 1, 2, 2, 3]
    assert [row["prompt"] for row in rows] == [TEXTS[number % 4] for number in range(7)]
    assert {row["model_id"] for row in rows} == {"tiny-llava"}
    assert len({row["answer_id"] for row in rows}) == 7
    assert len(set(reduced[0])) > 2
    expected = [[[0, 24], [4, 8]]] * 7
    expected[5] = [[0, 0]]
    assert [row["stages"] for row in stats] == expected
    assert [row["visual_tokens"] for row in stats] == [144] * 5 + [0, 144]
    assert all(row["seconds"] > 0 for row in stats)
    config = json.loads(Path(f"{reduced[1]}.run.json").read_text())["reduction"]
    assert config == {"method": "vscan", "visual_tokens": 24, "layers": [[4, 8]], "positions": "auto"}


@pytest.mark.parametrize("more", [["--batch-size", "3", "--num-workers", "2"], ["--batch-size", "16"]])
def test_batches_and_worker_processes_change_no_answer(checkpoint, data, reduced, tmp_path, more):
    assert answer(checkpoint, data, tmp_path / "a.jsonl", *REDUCED, *more) == reduced[0]


@pytest.mark.parametrize(
    ("setting", "batch_size"),
    [
        ("vscan", "1"),
        ("dense", "4"),
        ("fastervlm", "4"),
        # What other methods leave, tests/contracts has of both formats.
        *(pytest.param(name, "4", marks=pytest.mark.slow) for name in ("vscan", "random", "downsample")),
        *(pytest.param(name, "1", marks=pytest.mark.slow) for name in ("dense", "fastervlm", "random", "downsample")),
    ],
)
def test_both_formats_give_the_same_answers(checkpoint, hugging_face, data, tmp_path, setting, batch_size):
    more = {
        "dense": [],
        "vscan": REDUCED,
        "fastervlm": ["--method", "vispruner", "--visual_token_num", "16", "--important_ratio", "1.0"],
        "random": ["--method", "random", "--visual_token_num", "0.2", "--seed", "3"],
        "downsample": ["--method", "downsample", "--visual-token-num", "16"],
    }[setting]
    ours = answer(checkpoint, data, tmp_path / "original.jsonl", *more)
    assert answer(hugging_face, data, tmp_path / "hf.jsonl", *more, "--batch-size", batch_size) == ours
    ours, theirs = (
        [row["stages"] for row in read(tmp_path / f"{name}.jsonl.stats.jsonl")] for name in ("original", "hf")
    )
    assert ours == theirs


def test_beams_and_sampling_run_in_batches(checkpoint, data, tmp_path):
    one = answer(checkpoint, data, tmp_path / "one.jsonl", *REDUCED, "--num_beams", "3")
    assert answer(checkpoint, data, tmp_path / "four.jsonl", *REDUCED, "--num-beams", "3", "--batch-size", "4") == one
    torch.manual_seed(0)
    sampled = flags(checkpoint, data, tmp_path / "sampled.jsonl", *REDUCED, "--top_p", "0.9", "--batch-size", "4")
    sampled[sampled.index("--temperature") + 1] = "0.8"
    main(sampled)
    assert len(read(tmp_path / "sampled.jsonl")) == 7


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_an_interrupted_run_goes_on_where_it_stopped(checkpoint, data, reduced, tmp_path, cut):
    file = tmp_path / "a.jsonl"
    lines = reduced[1].read_text().splitlines(keepends=True)
    stats = Path(f"{reduced[1]}.stats.jsonl").read_text().splitlines(keepends=True)
    broken = lines[cut][: len(lines[cut]) // 2] if cut < 7 else ""
    file.write_text("".join(lines[:cut]) + broken)
    Path(f"{file}.stats.jsonl").write_text("".join(stats[: cut + 1]))
    Path(f"{file}.run.json").write_bytes(Path(f"{reduced[1]}.run.json").read_bytes())
    assert answer(checkpoint, data, file, *REDUCED) == reduced[0]
    assert file.read_text().splitlines(keepends=True)[:cut] == lines[:cut]
    assert len(read(f"{file}.stats.jsonl")) == 7


def test_answers_of_another_run_are_not_continued(checkpoint, data, reduced, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(reduced[1].read_bytes())
    Path(f"{file}.run.json").write_bytes(Path(f"{reduced[1]}.run.json").read_bytes())
    with pytest.raises(ValueError, match=r"7 rows of another run \(reduction: .*24.*, now None\)"):
        main(flags(checkpoint, data, file))
    assert file.read_bytes() == reduced[1].read_bytes()


def test_chunks_have_the_published_size_and_one_past_the_end_is_empty(checkpoint, data, reduced, tmp_path):
    texts = []
    for index in range(5):  # 7 rows in 5 chunks of 2: the last chunk is empty
        more = [*REDUCED, "--num-chunks", "5", "--chunk-idx", str(index)]
        part = answer(checkpoint, data, tmp_path / f"{index}.jsonl", *more)
        assert len(part) == [2, 2, 2, 1, 0][index]
        texts += part
    assert texts == reduced[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer_list", "[8]", "--image_token_list", "[32]"], "expected decoder layers 0 to 7, got 8"),
        (["--layer_list", "[4,6]", "--image_token_list", "[32]"], "expected one budget per layer"),
        (["--layer_list", "16", "--image_token_list", "[32]"], "--layer_list: expected a list such as"),
        (["--layer_list", "__import__('os')", "--image_token_list", "[1]"], "--layer_list: expected a list"),
        (["--visual_token_num", "0"], "visual_tokens: expected a count of at least 1, got 0"),
        (["--visual_token_num", "1.5"], r"expected a share in \(0, 1\], got 1.5"),
        (["--conv-mode", "vicuna"], "expected a conversation template out of vicuna_v1"),
        (["--model-base", "base"], "model_base: expected None"),
        (["--chunk-idx", "1"], "chunk-idx: expected 0 to num-chunks - 1, got 1 of 1"),
        (["--visual_token_num", "9", "--local_layer", "7"], "expected a local layer below the global one"),
    ],
)
def test_a_wrong_value_is_named(checkpoint, data, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        main(flags(checkpoint, data, tmp_path / "a.jsonl", *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--visual_tokens", "96"], "unrecognized arguments: --visual_tokens 96"),
        (["--important_ratio", "0.75"], r"\(hyper-parameters of vscan: --local_layer, "),
        (["--method", "fastvlm"], "invalid choice: 'fastvlm'"),
        (["--visual_token_num", "many"], "expected a count such as 96 or a share such as 0.167, got 'many'"),
        (["--batch-size", "0"], "expected an int of at least 1, got '0'"),
    ],
)
def test_a_wrong_flag_is_named(checkpoint, data, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        main(flags(checkpoint, data, tmp_path / "a.jsonl", *more))
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1
    assert re.search(message, printed)


def test_missing_files_are_named_before_a_model_is_loaded(checkpoint, data, tmp_path):
    def run(name, value):
        given = flags("no checkpoint", data, tmp_path / "a.jsonl")
        given[given.index(name) + 1] = str(value)
        main(given)

    with pytest.raises(FileNotFoundError, match="question file: expected a file, found none"):
        run("--question-file", tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="image folder: expected a folder"):
        run("--image-folder", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"the 4 images .* 4 are missing: 0.png, 1.png, 2.png, \.\.\."):
        run("--image-folder", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint folder with config\.json"):
        run("--temperature", 0)
    (tmp_path / "bad.jsonl").write_text('{"question_id": 1, "text": "?"}\n{"question": 1}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: expected the keys \['question_id', 'text'\]"):
        run("--question-file", tmp_path / "bad.jsonl")


@pytest.mark.parametrize(("batch_size", "num_workers"), [("1", "0"), ("3", "1")])
def test_a_truncated_image_is_named_and_the_rows_before_it_are_kept(
    checkpoint, data, reduced, tmp_path, batch_size, num_workers
):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    more = [*REDUCED, "--batch-size", batch_size, "--num-workers", num_workers]
    with pytest.raises(ValueError, match=r"question 1: .*2\.png"):
        main(flags(checkpoint, tmp_path, tmp_path / "a.jsonl", *more))
    assert [row["text"] for row in read(tmp_path / "a.jsonl")] == reduced[0][:2]
    Image.open(data / "2.png").save(tmp_path / "2.png")
    assert answer(checkpoint, tmp_path, tmp_path / "a.jsonl", *more) == reduced[0]


def test_the_command_says_what_is_wrong_in_one_line_with_exit_code_2(data, tmp_path):
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", *flags("none", data, tmp_path / "a.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: model path 'none': expected a checkpoint folder with config.json\n"


def test_help_shows_the_flags_of_the_method():
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", "--help", "--method", "vispruner"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--important_ratio" in result.stdout
    assert "--layer_list" in result.stdout
    assert "--local_layer" not in result.stdout
