"""A run that is left alone overnight: kills, several processes, broken images, and input that is wrong at once."""

import importlib.util
import json
import multiprocessing
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_tower import make_tower_small
from two_processes import STARTS, run_two

from benchmarks import kills
from llava.eval.model_vqa_loader import main
from llava.model.check import check_budget, check_checkpoint, check_reduction
from playground import tiny
from vscan.config import ReductionConfig
from vscan.eval.arguments import run_command

pytestmark = pytest.mark.usefixtures("weights_once")

REDUCED = ["--visual_token_num", "24", "--layer_list", "[4]", "--image_token_list", "[8]"]
NUM_ROWS = 7


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return small_checkpoint


@pytest.fixture
def data(tmp_path):
    """Seven questions, every one on a picture of its own."""
    questions = []
    for number in range(NUM_ROWS):
        tiny.draw(tmp_path / f"{number}.png", seed=number)
        questions.append({"question_id": number // 2, "text": "What is this?", "image": f"{number}.png"})
    write(tmp_path / "questions.jsonl", questions)
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def flags(checkpoint, data, answers_file, *more):
    given = {"--model-path": checkpoint, "--question-file": data / "questions.jsonl", "--image-folder": data}
    given |= {"--answers-file": answers_file, "--temperature": 0, "--max_new_tokens": 4, "--num-workers": 0}
    given |= {"--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair] + [*REDUCED, *more]


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


def break_image(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    return whole


# ------------------------------------------------------------------------------------------------------------ kills


@pytest.fixture(params=["forks", pytest.param("fork server", marks=pytest.mark.slow)])
def starts(request, monkeypatch):
    """Forks of the test have its imports, a smaller model and shorter answers; the fork server is the benchmark's."""
    if request.param == "forks":
        importlib.import_module("llava.eval.answering")
        build = tiny.build_checkpoint
        monkeypatch.setattr(tiny, "build_checkpoint", lambda folder: (build(folder), make_tower_small(folder)))
        fork = multiprocessing.get_context("fork")
        monkeypatch.setattr(kills.multiprocessing, "get_context", lambda method: fork)
        monkeypatch.setattr(kills, "TOKENS", 8)


@pytest.mark.usefixtures("starts")
def test_kills_lose_double_and_recompute_nothing(tmp_path):
    counts = kills.kill_again_and_again(tmp_path, 2)
    assert counts["kills"] == 2
    assert counts["amid rows"] > 0


# ------------------------------------------------------------------------------------------------ several processes


@pytest.mark.parametrize("start", STARTS)
def test_two_processes_write_the_file_of_one_also_after_one_of_them_failed(checkpoint, data, start):
    main(flags(checkpoint, data, data / "one.jsonl"))
    whole = break_image(data / "5.png")
    command = (start, "llava.eval.model_vqa_loader", flags(checkpoint, data, data / "two.jsonl"))
    failed = run_two(*command)
    assert failed.returncode != 0
    assert "error: row 5, question 2: expected a complete image file" in failed.stderr
    kept = [line for part in data.glob("two.jsonl.rank?of2") for line in part.read_text().splitlines()]
    assert len(kept) >= 2  # rows 3 and 4, and those of the other process that were ready in time

    (data / "5.png").write_bytes(whole)
    assert run_two(*command).returncode == 0
    one, two = read(data / "one.jsonl"), read(data / "two.jsonl")
    assert [{**row, "answer_id": None} for row in two] == [{**row, "answer_id": None} for row in one]
    assert set(kept) <= set((data / "two.jsonl").read_text().splitlines())
    one, two = read(data / "one.jsonl.stats.jsonl"), read(data / "two.jsonl.stats.jsonl")
    assert [{**row, "seconds": None} for row in two] == [{**row, "seconds": None} for row in one]
    assert [row["row"] for row in two] == list(range(NUM_ROWS))
    beside = {file.name for file in data.glob("two.jsonl*")}
    assert beside == {"two.jsonl", "two.jsonl.run.json", "two.jsonl.stats.jsonl"}


# ---------------------------------------------------------------------------------------------------- broken images


@pytest.mark.parametrize("batch_size", [pytest.param("1", marks=pytest.mark.slow), "3"])
def test_broken_images_are_skipped_and_tried_again(checkpoint, data, monkeypatch, capsys, batch_size):
    main(flags(checkpoint, data, data / "whole.jsonl"))
    whole = break_image(data / "4.png")
    (data / "0.png").rename(data / "gone.png")
    (data / "2.png").rename(data / "other.png")
    (data / "2.png").write_text("version https://git-lfs.github.com/spec/v1")
    command = flags(checkpoint, data, data / "a.jsonl", "--on-error", "skip", "--batch-size", batch_size)
    main(command)
    assert "3 of 7 rows were skipped, see a.jsonl.skipped.jsonl" in capsys.readouterr().err
    assert [row["row"] for row in read(data / "a.jsonl.stats.jsonl")] == [1, 3, 5, 6]
    skipped = read(data / "a.jsonl.skipped.jsonl")
    assert [(row["row"], row["question_id"]) for row in skipped] == [(0, 0), (2, 1), (4, 2)]
    for row, message in zip(skipped, ("found nothing there", "complete image", "complete image"), strict=True):
        assert message in row["error"]
    ids = [row["answer_id"] for row in read(data / "a.jsonl")]

    (data / "gone.png").rename(data / "0.png")
    (data / "4.png").write_bytes(whole)
    (data / "other.png").rename(data / "2.png")
    main(command)
    rows = read(data / "a.jsonl")
    assert [{**row, "answer_id": None} for row in rows] == [
        {**row, "answer_id": None} for row in read(data / "whole.jsonl")
    ]
    assert [rows[row]["answer_id"] for row in (1, 3, 5, 6)] == ids
    assert not (data / "a.jsonl.skipped.jsonl").exists()


def test_a_broken_image_stops_the_command_with_one_line_and_exit_code_2(checkpoint, data, monkeypatch, capsys):
    break_image(data / "3.png")
    error = error_of(monkeypatch, capsys, flags(checkpoint, data, data / "a.jsonl"))
    assert error.startswith("error: row 3, question 1: expected a complete image file that Pillow can read at ")
    assert len(read(data / "a.jsonl")) == 3


# ------------------------------------------------------------------------- wrong before the model is loaded, or by it


@pytest.fixture
def husk(checkpoint, tmp_path):
    """A checkpoint that lacks all weights: what is said about anything else was found before."""
    folder = tmp_path / "husk"
    shutil.copytree(checkpoint, folder)
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer_list", "[8]"], "layers: expected decoder layers 0 to 7, got 8"),
        (["--layer_list", "[-1]"], "layers: expected a decoder layer of 0 or more, got -1"),
        (["--layer_list", "[4,6]"], "expected one budget per layer, got 2 layers [4, 6] and 1 budgets [8]"),
        (["--image_token_list", "[-1]"], "expected a count of at least 0, got -1"),
        (["--visual_token_num", "0"], "visual_tokens: expected a count of at least 1, got 0"),
        (["--visual_token_num", "145"], "visual_token_num: expected at most 144, the tokens of an image of this model"),
        (["--conv-mode", "vicuna"], "expected a conversation template out of vicuna_v1"),
        (["--model-base", "base"], "model_base: expected None"),
        (["--chunk-idx", "1"], "chunk-idx: expected 0 to num-chunks - 1, got 1 of 1"),
    ],
)
def test_a_wrong_value_is_named_before_the_model_is_loaded(husk, data, monkeypatch, capsys, more, message):
    assert message in error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl", *more))
    assert not (data / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--temperature", "-1", "expected 0 (greedy) or a number above it, got '-1'"),
        ("--temperature", "nan", "expected 0 (greedy) or a number above it, got 'nan'"),
        ("--top_p", "0", "expected a number in (0, 1], got '0'"),
        ("--top_p", "1.5", "expected a number in (0, 1], got '1.5'"),
        ("--num-workers", "-1", "expected an int of at least 0, got '-1'"),
        ("--on-error", "ignore", "invalid choice: 'ignore'"),
    ],
)
def test_a_wrong_flag_is_named(husk, data, capsys, flag, value, message):
    with pytest.raises(SystemExit) as caught:
        main(flags(husk, data, data / "a.jsonl", f"{flag}={value}"))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("image", ["../0.png", "a/../../0.png", "/0.png", ".."])
def test_an_image_outside_the_folder_is_refused(husk, data, monkeypatch, capsys, image):
    write(data / "questions.jsonl", [{"question_id": 0, "text": "?", "image": image}])
    error = error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl"))
    assert error == f"error: expected an image inside the image folder {str(data)!r}, got {image!r}"


def test_a_link_and_a_detour_inside_the_folder_are_fine(checkpoint, data, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (data / "0.png").rename(elsewhere / "0.png")
    (data / "0.png").symlink_to(elsewhere / "0.png")
    write(data / "questions.jsonl", [{"question_id": 0, "text": "?", "image": f"{data.name}/../0.png"}])
    (data / data.name).mkdir()
    main(flags(checkpoint, data, data / "a.jsonl"))
    assert len(read(data / "a.jsonl")) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object, got '{'"),
        ('{"question_id": 1}', "line 2: expected the keys ['text'], got"),
        ('{"question_id": 1, "text": 5}', "line 2: expected text to be a string, got 5"),
        ('{"question_id": 1, "text": "?", "image": ["a"]}', "line 2: expected image to be a string, got ['a']"),
    ],
)
def test_a_wrong_line_of_the_question_file_is_shown(husk, data, monkeypatch, capsys, line, message):
    (data / "questions.jsonl").write_text('{"question_id": 0, "text": "?"}\n' + line)
    assert message in error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl"))


def test_answers_of_another_configuration_stay(checkpoint, husk, data, monkeypatch, capsys):
    write(data / "questions.jsonl", read(data / "questions.jsonl")[:1])
    main(flags(checkpoint, data, data / "a.jsonl"))
    before = (data / "a.jsonl").read_bytes()
    error = error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl", "--temperature", "0.5"))
    assert "expected one that this command began, got 1 rows of another run" in error
    assert "temperature: 0.0, now 0.5" in error
    assert (data / "a.jsonl").read_bytes() == before


def change_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def shard(folder, missing):
    index = {"weight_map": {"a": "model-1-of-3.safetensors", "b": "model-2-of-3.safetensors", "c": "x.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in set(index["weight_map"].values()) - set(missing):
        (folder / name).touch()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "expected a checkpoint folder with config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON, got "),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: expected a JSON object, got []"),
        (
            lambda f: change_config(f, mm_vision_tower=None, model_type="mamba"),
            "expected a config with mm_vision_tower and one of the model types llava, llava_llama (original LLaVA), or "
            "with vision_config and one of llava, llava_next, video_llava (Hugging Face), got model_type 'mamba'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "expected weights (one of model.safetensors, "),
        (
            lambda f: shard(f, ["model-2-of-3.safetensors", "x.safetensors"]),
            "expected the 3 shards that model.safetensors.index.json names, 2 are missing: model-2-of-3.safetensors, x",
        ),
    ],
    ids=["no config", "no JSON", "no object", "architecture", "no weights", "missing shards"],
)
def test_an_incomplete_checkpoint_is_refused_before_it_is_loaded(husk, data, monkeypatch, capsys, damage, message):
    damage(husk)
    assert message in error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl"))
    assert not (data / "a.jsonl").exists()


class Evil:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        return open, ("/dev/null",)


def pickled(folder, content):
    (folder / "model.safetensors").unlink()
    content(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "model.safetensors").write_bytes(b""),
        lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{}"),
        lambda f: pickled(f, lambda file: torch.save({"lm_head.weight": Evil()}, file)),
        lambda f: pickled(f, lambda file: file.write_bytes(pickle.dumps(Evil()))),
        lambda f: pickled(f, lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")),
    ],
    ids=["empty", "cut", "pickle", "old pickle", "pointer"],
)
def test_weights_that_are_none_are_refused_with_the_folder_named(husk, data, monkeypatch, capsys, damage):
    damage(husk)
    error = error_of(monkeypatch, capsys, flags(husk, data, data / "a.jsonl"))
    assert str(husk) in error
    assert "expected" in error


@pytest.mark.parametrize(
    "more", [["--device", "nowhere"], ["--device", "cuda:99"], ["--attn-implementation", "flash_attention_2"]]
)
def test_a_device_or_kernel_that_is_not_there_is_named(checkpoint, data, monkeypatch, capsys, more):
    if more[1] == "flash_attention_2" and importlib.util.find_spec("flash_attn"):
        pytest.skip("FlashAttention is installed here")
    error = error_of(monkeypatch, capsys, flags(checkpoint, data, data / "a.jsonl", *more))
    assert "expected a checkpoint that loads on device" in error


def test_any_resolution_has_no_fixed_number_of_tokens():
    """There a budget above it keeps all tokens of a crop."""
    config = {"mm_vision_tower": "t", "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[336, 672]]}
    reduction = ReductionConfig(visual_tokens=577)
    check_budget(reduction, config, 576)
    with pytest.raises(ValueError, match="expected at most 576"):
        check_budget(reduction, {**config, "image_aspect_ratio": "pad"}, 576)


def test_all_tokens_and_shares_are_budgets(checkpoint):
    config = check_checkpoint(checkpoint)
    for budget in (144, 1.0, 0.5, None):
        check_reduction(ReductionConfig(visual_tokens=budget, layers=((7, 32),)), config, checkpoint)
