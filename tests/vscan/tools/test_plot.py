"""The picture of what was kept: every pixel of the overlay, tiles put together, and the whole command."""

import json
import random
import runpy
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import Injected, to_hugging_face
from PIL import Image, ImageFont
from safetensors.torch import load_file, save_file
from tiny_qwen import build_checkpoint as build_qwen

import vscan
from llava.checkpoint import panel_of
from llava.eval.answering import Answering, Preparation
from llava.mm_utils import load_image_processor
from llava.model.builder import load_model, load_pretrained_model
from playground import tiny
from vscan.methods.base import Needs
from vscan.models.towers import run_tower
from vscan.select.scan import scan
from vscan.tools import plot

pytestmark = pytest.mark.usefixtures("weights_once")

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def noise(width, height, seed=0):
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


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
    config = "preprocessor_config.json"
    (folder / config).write_bytes((checkpoint / "clip_tower" / config).read_bytes())
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_pretrained_model(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def loaded_next(checkpoint, tmp_path_factory):
    """The tiny model as an any-resolution one: crops, unpadding and newlines."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "image_grid_pinpoints": PINPOINTS}))
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.image_newline"] = torch.full((config["hidden_size"],), 0.1)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return load_pretrained_model(str(folder), device="cpu")


@pytest.fixture(scope="module", params=["original", "hugging face"])
def loaded_either(request, loaded_next):
    tokenizer, model, *rest = loaded_next
    if request.param == "hugging face":
        model = deepcopy(model)
        image_token = model.config.vocab_size
        model.resize_token_embeddings(image_token + 1, mean_resizing=False)
        model = to_hugging_face(model, image_token)
        model.generation_config.suppress_tokens = [image_token]  # an answer holds no pictures
    return tokenizer, model, *rest


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """The random models never end."""
    monkeypatch.setattr(plot, "MAX_NEW_TOKENS", 4)


@pytest.fixture
def picture(tmp_path):
    tiny.draw(tmp_path / "shapes.png", seed=3)
    return tmp_path / "shapes.png"


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every figure that is drawn."""
    calls, figure = [], plot.figure

    def spy(*args):
        calls.append(args)
        return figure(*args)

    monkeypatch.setattr(plot, "figure", spy)
    return calls


def run(monkeypatch, folder, *argv):
    """The command as `python -m vscan.plot` runs it in a folder; returns its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, argv)])
    monkeypatch.delitem(sys.modules, "vscan.plot", raising=False)
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("vscan.plot", run_name="__main__")
    return exit.value.code


@pytest.mark.parametrize(
    ("grid", "size", "frame"), [((4, 6), (72, 48), 2), ((4, 6), (61, 43), 1), ((24, 24), (480, 480), 3)]
)
def test_every_pixel_is_dimmed_or_as_it_was_or_in_the_frame_of_its_label(grid, size, frame):
    image = noise(*size)
    kept = {"a": [0, 9, grid[0] * grid[1] - 1], "b": [1, 2, 14]}
    result = plot.overlay(image, grid, kept)
    lefts = [size[0] * column // grid[1] for column in range(grid[1] + 1)]
    tops = [size[1] * row // grid[0] for row in range(grid[0] + 1)]
    before, after = image.load(), result.load()
    for token in range(grid[0] * grid[1]):
        row, column = divmod(token, grid[1])
        left, right, top, bottom = lefts[column], lefts[column + 1], tops[row], tops[row + 1]
        colours = [colour for colour, tokens in zip(plot.COLOURS, kept.values(), strict=True) if token in tokens]
        for x in range(left, right):
            for y in range(top, bottom):
                pixel = before[x, y]
                expected = tuple(value * 2 // 5 for value in pixel)
                if colours:
                    in_frame = min(x - left, right - 1 - x, y - top, bottom - 1 - y) < frame
                    expected = colours[0] if in_frame else pixel
                assert after[x, y] == expected, (token, x, y)


def test_an_overlay_leaves_its_input_as_it_is():
    image = noise(24, 24)
    before = image.tobytes()
    assert plot.overlay(image, (2, 2), {"kept": []}).tobytes() == bytes(value * 2 // 5 for value in before)
    assert image.tobytes() == before


@pytest.mark.parametrize(("grid", "tiles", "first"), [((3, 3), (1, 1), 0), ((2, 3), (2, 2), 1), ((2, 2), (1, 3), 2)])
def test_tokens_of_tiles_become_tokens_of_the_picture_that_they_make(grid, tiles, first):
    height, width = grid
    numbers = torch.arange(8 * height * width).view(8, height, width)
    views = iter(numbers[first:])
    rows = [torch.cat([next(views) for _ in range(tiles[1])], dim=1) for _ in range(tiles[0])]
    whole = torch.cat(rows).flatten().tolist()
    panel = plot.Panel(noise(1, 1), first, tiles)
    for place, token in enumerate(whole):
        assert plot.assemble([token], grid, panel) == [place]
    others = sorted(set(range(-1, 8 * height * width)) - set(whole))
    assert plot.assemble(others, grid, panel) == []


def test_a_figure_has_a_column_a_stage_and_a_row_a_panel():
    panels = [plot.Panel(noise(480, 480)), plot.Panel(noise(576, 288, seed=1), 1, (1, 2))]
    stages = [
        ("encoder: 4 of 1728", {"local": [0, 576], "global": [5, 576 * 2]}),
        ("layer 2: 1 of 1728", {"local": [576], "global": []}),
    ]
    result = plot.figure(panels, (24, 24), stages, ["Question: ?"])
    assert result.width == 2 * (576 + 16) + 16
    top = 16 + 28 + 8
    for number, (_, kept) in enumerate(stages):
        left = 16 + number * (576 + 16)
        base = plot.overlay(panels[0].image, (24, 24), {label: [t for t in kept[label] if t < 576] for label in kept})
        # The second tile begins in the middle of the first row of 48.
        tiles = {label: [{576: 0, 1152: 24}[t] for t in kept[label] if t >= 576] for label in kept}
        tiles = plot.overlay(panels[1].image, (24, 48), tiles)
        assert result.crop((left, top, left + 480, top + 480)).tobytes() == base.tobytes()
        below = top + 480 + 16
        assert result.crop((left, below, left + 576, below + 288)).tobytes() == tiles.tobytes()
        assert result.crop((left, 16, left + 200, 16 + 28)).getextrema() != ((255, 255),) * 3
    legend = result.crop((0, 864, result.width, result.height))
    colours = {colour for _, colour in legend.getcolors(1 << 20)}
    assert {*plot.COLOURS, (102, 102, 102)} <= colours


@pytest.mark.parametrize("text", ["", "word", "MANY WIDE WORDS " * 30, "x" * 500, "two\nlines\tand\x0bmore", "W" * 99])
def test_texts_are_wrapped_within_their_width_and_lose_nothing(text):
    font = ImageFont.load_default(size=20)
    lines = plot.wrap(text, font, 400)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= 400 for line in lines)


def test_a_panel_shows_the_very_pixels_that_the_encoder_got(checkpoint):
    processor = load_image_processor(checkpoint / "clip_tower")
    views = [noise(336, 336, seed) for seed in range(5)]
    pixels = processor(views, return_tensors="pt")["pixel_values"]
    assert panel_of(pixels, processor).image.tobytes() == views[0].tobytes()
    panel = panel_of(pixels, processor, 1, (2, 2))
    assert (panel.first, panel.tiles, panel.image.size) == (1, (2, 2), (672, 672))
    for number, view in enumerate(views[1:]):
        x, y = number % 2 * 336, number // 2 * 336
        assert panel.image.crop((x, y, x + 336, y + 336)).tobytes() == view.tobytes()


def test_the_command_draws_what_a_run_of_its_own_keeps_in_both_formats(
    checkpoint, hugging_face, loaded, picture, tmp_path, drawn, capsys
):
    tokenizer, model, processor, _ = loaded
    question = "How many red shapes are there?"
    pictures = []
    for number, folder in enumerate((checkpoint, hugging_face)):
        output = tmp_path / f"{number}.png"
        flags = [picture, "--model-path", folder, "--question", question, "--output", output, "--device", "cpu"]
        plot.main([str(flag) for flag in flags])
        assert capsys.readouterr().out == f"{output}\n"
        pictures.append(Image.open(output))
    assert pictures[0].mode == "RGB"
    assert pictures[0].tobytes() == pictures[1].tobytes()

    (panel,), grid, stages, texts = drawn[0]
    assert grid == (24, 24)
    assert [caption for caption, _ in stages] == ["encoder: 96 of 576", "layer 4: 32 of 576"]
    assert panel.image.getpixel((0, 100)) == (122, 116, 104)  # the padding, in the processor's mean colour
    with vscan.reduce(model, visual_tokens=96, layers={4: 32}) as reduction:
        prompt = Preparation.of(model, tokenizer, processor, tmp_path, "vicuna_v1")(
            {"image": picture.name, "text": question}
        )
        (answer,) = Answering(tokenizer, model, reduction, do_sample=False, max_new_tokens=4)([prompt])
    assert texts == [f"Question: {question}", f"Answer: {answer.text}"]
    rows = run_tower(model.model.vision_tower.vision_tower, prompt.pixels, -2, Needs(rows=(5, -2))).rows
    local, best = (set(tokens[0].tolist()) for tokens in scan(rows[5], rows[-2], (24, 24), 96))
    for (_, kept), expected in zip(stages, reduction.stats().rows[0].kept, strict=True):
        assert kept == {"local scan": sorted(local & set(expected)), "global scan": sorted(best & set(expected))}
    assert len(stages[0][1]["local scan"]) == 48


@pytest.mark.parametrize("size", [(364, 196), (140, 420)])
def test_a_qwen_is_drawn_on_the_grid_of_its_picture_with_the_very_pixels_that_the_encoder_got(
    tmp_path, drawn, capsys, size
):
    build_qwen(tmp_path / "tiny-qwen")
    noise(*size).save(tmp_path / "noise.png")
    flags = ["--model-path", tmp_path / "tiny-qwen", "--output", tmp_path / "out.png", "--device", "cpu"]
    plot.main([str(flag) for flag in (tmp_path / "noise.png", *flags, "--average", "0.3")])
    assert capsys.readouterr().out == f"{tmp_path / 'out.png'}\n"
    (panel,), grid, stages, _ = drawn[0]
    assert grid == (size[1] // 28, size[0] // 28)
    assert panel.image.size == size  # sides of whole tokens stay as they are
    assert panel.image.tobytes() == noise(*size).tobytes()
    number = grid[0] * grid[1]
    first = int(0.45 * number)
    assert [caption for caption, _ in stages] == [
        f"encoder: {first} of {number}",
        f"layer 3: {first // 3} of {number}",
    ]
    assert list(stages[0][1]) == ["local scan", "global scan"]
    assert [sum(map(len, kept.values())) for _, kept in stages] == [first, first // 3]
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"


def test_other_reductions_have_one_label_and_a_caption_for_each_stage(loaded, picture, drawn):
    for config, captions, label in [
        (vscan.ReductionConfig("vispruner", 64), ["encoder: 64 of 576"], "kept by VisPruner"),
        (
            vscan.ReductionConfig("vscan", None, {2: 0.5, 4: 9}),
            ["encoder: 576 of 576", "layer 2: 288 of 576", "layer 4: 9 of 576"],
            "kept by VScan",
        ),
        (vscan.ReductionConfig("random", 99, {0: 0.1}), ["layer 0: 9 of 576"], "kept by Random"),
    ]:
        plot.draw(loaded, config, picture, "What is this?")
        stages = drawn[-1][2]
        assert [caption for caption, _ in stages] == captions
        for caption, kept in stages:
            assert list(kept) == [label]
            assert len(kept[label]) == int(caption.split()[-3])
    with vscan.reduce(loaded[1], visual_tokens=9):  # nothing was left in force
        pass


@pytest.mark.parametrize(
    ("size", "tiles", "padded"),
    [((640, 300), (1, 2), "rows"), ((300, 640), (2, 1), "columns"), ((500, 500), (2, 2), None)],
)
def test_crops_are_put_together_again_with_every_token_in_its_place(
    loaded_either, tmp_path, monkeypatch, drawn, size, tiles, padded
):
    """With a method whose choice is known for each crop, what is drawn is known, whatever the packing did."""
    monkeypatch.setitem(vscan.METHODS, "injected", Injected)
    places = (0, 23, 24, 300, 400, 551, 575)
    slots = tuple(tuple(sorted((place + view) % 576 for place in places)) for view in range(1 + tiles[0] * tiles[1]))
    noise(*size).save(tmp_path / "noise.png")
    config = vscan.ReductionConfig("injected", len(places), fields={"slots": slots, "merged": False})
    plot.draw(loaded_either, config, tmp_path / "noise.png", "What is this?")
    panels, _, [(caption, kept)], _ = drawn[0]
    assert [panel.tiles for panel in panels] == [(1, 1), tiles]
    assert panels[1].image.size == (336 * tiles[1], 336 * tiles[0])
    (kept,) = kept.values()
    num_newlines = kept.count(-1)
    assert caption.startswith(f"encoder: {len(kept)} of ")
    assert num_newlines > 0
    expected = {view * 576 + slot for view, of_view in enumerate(slots) for slot in of_view}
    shown = set(kept) - {-1}
    assert len(shown) == len(kept) - num_newlines
    assert shown <= expected
    # What unpadding cut away lay in black.
    height, width = 24 * tiles[0], 24 * tiles[1]
    for token in plot.assemble(sorted(expected - shown), (24, 24), panels[1]):
        row, column = divmod(token, width)
        assert {"rows": row in (0, height - 1), "columns": column in (0, width - 1), None: False}[padded]
        box = column * 14, row * 14, column * 14 + 14, row * 14 + 14
        assert panels[1].image.crop(box).getextrema()[0][0] == 0
    assert bool(expected - shown) == (padded is not None)


def test_a_method_with_a_resolution_of_its_own_has_square_tiles_without_newlines(loaded_next, tmp_path, drawn):
    noise(640, 300).save(tmp_path / "noise.png")
    plot.draw(loaded_next, vscan.ReductionConfig("vispruner", 32), tmp_path / "noise.png", "What is this?")
    panels, _, [(caption, kept)], _ = drawn[0]
    assert caption == "encoder: 160 of 2880"
    assert panels[1].tiles == (2, 2)
    assert [len(plot.assemble(kept["kept by VisPruner"], (24, 24), panel)) for panel in panels] == [32, 128]


def test_without_an_output_the_file_lies_here_under_the_name_of_the_picture(checkpoint, picture, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    flags = ["--model-path", checkpoint, "--device", "cpu", "--visual_token_num", "12", "--method", "downsample"]
    assert run(monkeypatch, tmp_path / "here", picture, *flags) == 0
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["shapes_kept.png"]
    assert Image.open(tmp_path / "here" / "shapes_kept.png").width == 480 + 32


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["missing.png"], "expected an image file at missing.png, found nothing there"),
        (["cut.png"], "expected a complete image file that Pillow can read at cut.png"),
        (["shapes.png"], "model path 'none': expected a checkpoint folder with config.json"),
        (["shapes.png", "--visual_token_num", "0"], "visual_tokens: expected a count of at least 1, got 0"),
        (
            ["shapes.png", "--average", "64", "--visual_token_num", "9"],
            "expected one of --average, --preset, or budgets",
        ),
        (["shapes.png", "--layer_list", "[4]"], "expected one budget per layer"),
        (["shapes.png", "--output", "kept.jpg"], "--output: expected a .png file in a folder that exists"),
        (["shapes.png", "--output", "no/kept.png"], "--output: expected a .png file in a folder that exists"),
        (["shapes.png", "--windows", "6"], "unrecognized arguments: --windows 6"),
        (["shapes.png", "--method", "fastvlm"], "invalid choice: 'fastvlm'"),
        ([], "the following arguments are required: IMAGE"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(picture, monkeypatch, capsys, more, message):
    whole = picture.read_bytes()
    (picture.parent / "cut.png").write_bytes(whole[: len(whole) // 2])
    before = sorted(picture.parent.iterdir())
    assert run(monkeypatch, picture.parent, "--model-path", "none", *more) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.count("error:") == 1
    last = printed.splitlines()[-1]
    assert "error: " in last
    assert message in last
    assert sorted(picture.parent.iterdir()) == before


def test_a_reduction_that_does_not_fit_the_model_is_named(checkpoint, picture, tmp_path, monkeypatch, capsys):
    flags = ["--model-path", checkpoint, "--device", "cpu", "--layer_list", "[8]", "--image_token_list", "[3]"]
    assert run(monkeypatch, tmp_path, picture, *flags) == 2
    assert capsys.readouterr().err.endswith("error: layers: expected decoder layers 0 to 7, got 8\n")
    assert not (tmp_path / "shapes_kept.png").exists()


def test_the_module_needs_neither_torch_nor_llava_to_be_imported():
    code = "import sys, vscan.tools.plot; assert not {'torch', 'transformers', 'llava'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3])
