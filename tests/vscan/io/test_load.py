"""One way to a model of any family: found by its config, judged by its files, with its own prompts and pictures."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_qwen import build_checkpoint as build_qwen

import vscan
from playground.tiny import draw
from qwen.checkpoint import QwenCheckpoint, picture_of
from qwen.images import process_image
from vscan.compat import Qwen2VLImageProcessorPil
from vscan.config import ReductionConfig
from vscan.io import load
from vscan.io.load import CHECKPOINTS, at_hand, checkpoint_of

ROOT = Path(__file__).resolve().parents[3]
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """A checkpoint of each family."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    build_qwen(folder)
    return {"llava": checkpoint, "qwen": folder}


@pytest.mark.parametrize(("family", "num_tokens", "stages"), [("llava", 576, [96, 32]), ("qwen", None, [24, 8])])
def test_any_family_answers_and_is_reduced_in_the_same_words(folders, tmp_path, family, num_tokens, stages):
    draw(tmp_path / "a.png", seed=0)
    assert checkpoint_of(folders[family]).num_tokens == num_tokens
    loaded = load(folders[family], device="cpu")
    tokenizer, model, image_processor = loaded
    again = at_hand(tokenizer, model, image_processor)
    assert type(again) is type(loaded)
    budget = {"visual_tokens": stages[0], "layers": {3: stages[1]}}
    with vscan.reduce(model, **budget) as reduction:
        prepare = again.preparation(tmp_path, "vicuna_v1", reduction)
        prompt = prepare({"image": "a.png", "text": "What is it?"})
        answering = again.answering(reduction, **GREEDY)
        answering.check(prompt)
        (answer,) = answering([prompt])
        assert reduction.text == ["What is it?"]
        assert [tokens for _, tokens in answer.stats["stages"]] == stages
        sight = again.sight(prompt, prepare)
        assert len(sight.origins) == answer.stats["visual_tokens"] == sight.grid[0] * sight.grid[1]
        assert sight.origins == list(range(len(sight.origins)))


@pytest.mark.parametrize("size", [(84, 168), (140, 56)])
def test_a_qwen_picture_is_put_together_again_from_its_patches(folders, size):
    processor = Qwen2VLImageProcessorPil.from_pretrained(folders["qwen"])
    image = Image.frombytes("RGB", size, bytes(torch.randint(256, (size[0] * size[1] * 3,)).tolist()))
    pixels, grid = process_image(image, processor, (28 * 28, 10**7))
    assert picture_of(pixels, grid, processor).tobytes() == image.tobytes()


def test_an_average_and_a_preset_become_budgets_by_the_methods_schedule_and_the_checkpoints_fields(folders, tmp_path):
    checkpoint = checkpoint_of(folders["llava"])
    assert checkpoint.settled(ReductionConfig("vscan", average=64)) == ReductionConfig("vscan", 96, {4: 32})
    given = ReductionConfig("vscan", 90, {2: 0.5})
    assert checkpoint.settled(given) is given
    with pytest.raises(ValueError, match="layers: expected decoder layers 0 to 7, got 8"):
        checkpoint.settled(ReductionConfig("pdrop", preset="published"))  # of 32 layers
    with pytest.raises(ValueError, match=r"^average: not reachable \(at least 144\)$"):
        checkpoint.settled(ReductionConfig("pdrop", average=100))
    with pytest.raises(ValueError, match=r"preset: expected one of those of 'vscan' .*, got 'mine'"):
        checkpoint.settled(ReductionConfig("vscan", preset="mine"))
    with pytest.raises(ValueError, match=r"expected a share such as 0.111, for images vary in size, got 64"):
        checkpoint_of(folders["qwen"]).settled(ReductionConfig("vscan", average=64))

    for file in folders["llava"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((folders["llava"] / "config.json").read_text())
    config["reduction"] = {"vscan": {"prune_layer": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_of(tmp_path).settled(ReductionConfig("vscan", average=64)).layers == ((5, 29),)


def test_a_family_that_is_not_known_is_named_with_those_that_are(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"expected a config with one of the model types llava, .*got model_type 'bert'"
    ):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint folder with config.json"):
        load(tmp_path / "none")
    assert QwenCheckpoint(folders["qwen"]).num_layers == 6


def test_files_are_judged_without_torch_and_without_any_other_library(folders):
    code = (
        "import sys\nfrom vscan.io import load\nassert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    )
    code += "\nfrom vscan.io.load import checkpoint_of\nfor folder in sys.argv[1:]: checkpoint_of(folder)"
    code += "\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, *map(str, folders.values())], check=True, cwd=ROOT)


def imported(file: Path):
    """The packages that a file imports by their full names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_nothing_in_vscan_imports_the_packages_above_it_but_through_the_table():
    above = {"llava", "qwen", "playground", "scripts", "benchmarks"}
    files = sorted((ROOT / "vscan").rglob("*.py"))
    assert len(files) > 80
    assert {file: found for file in files if (found := above & set(imported(file)))} == {}
    assert {place.partition(".")[0] for place in CHECKPOINTS.values()} == {"llava", "qwen"}


@pytest.mark.parametrize("package", ["eval", "io", "tools"])
def test_the_modules_of_a_room_do_not_import_each_other_in_circles(package):
    room = {file.stem: file for file in (ROOT / "vscan" / package).glob("*.py") if not file.stem.startswith("__")}
    needs = {
        name: {
            node.module.partition(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        }
        & set(room)
        for name, file in room.items()
    }
    while free := {name for name, wanted in needs.items() if not wanted}:
        needs = {name: wanted - free for name, wanted in needs.items() if name not in free}
    assert needs == {}
