"""Where the model looks: [CLS] and the patches in every block of the tower, the last prompt token in every layer of the
decoder (VScan, Figs. 2 and 3).

Tower, mean over pictures: the foreground's share of the attention of [CLS] to patches, and how well that attention
tells things from ground (AUC), for small shapes, large shapes and signs apart; how far patches look at each other.
Decoder, mean over questions: the attention that visual tokens get; how it is spread over the rows of the grid, also
among the half of the tokens that get most; how much lies on the patches that the question is about.
What needs to know the pictures' things is left out where the data has no scenes.jsonl.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llava.eval.answering import Preparation
from vscan.models.towers import grid_of

from ..scenes.world import SIDES, Thing
from . import maps
from .dense import Parts, Reader, check_one_view, preparation, tower_looks
from .layers import Means, means_of, write_tables
from .measures import auc, share_on, shares_of_rows
from .setting import Setting, Shown, covered, read_shown

NUM_EXAMPLES = 3
GROUPS = {
    "small shapes": lambda thing: not thing.is_sign and thing.width == SIDES[0],
    "large shapes": lambda thing: not thing.is_sign and thing.width > SIDES[0],
    "signs": lambda thing: thing.is_sign,
}
CLS_ON_THINGS, THINGS = "[CLS] on things %", "things, % of patches"
DISTANCE = "distance of patches"
MASS, UPPER, LOWER, KEPT_LOWER = "visual %", "upper third %", "lower third %", "lower third of best half %"
ASKED_SHARE, ASKED = "on what is asked %", "what is asked, % of patches"


@dataclass(frozen=True)
class Example:
    """A picture or a question to draw.

    Args:
        picture: float [H, W, 3] in [0, 1].
        looks: [layers, N].
        text: the question; empty for the tower.
        about: the things that it is about.
    """

    picture: np.ndarray
    looks: np.ndarray
    text: str = ""
    about: tuple[Thing, ...] = ()


Measures = dict[str, np.ndarray]  # {measure: [layers]}, of one picture or question


def summarise(lines: list[Measures], questions: list[dict]) -> dict[str, Means]:
    """Means over pictures or questions, of those that have a number: {measure: [layers]}.

    Args:
        lines: what was measured of each.
        questions: which ones, or one about each picture.
    """
    clusters = [question["image"] for question in questions]
    return {name: means_of(np.array([line[name] for line in lines]), clusters) for name in lines[0]}


def measure_cls(looks: np.ndarray, things: list[Thing], grid: tuple[int, int]) -> Measures:
    """One picture's [CLS] attention [blocks, N] against its things."""
    foreground = covered(things, grid)
    on_things = 100 * share_on(looks, foreground) if foreground.any() else np.full(len(looks), math.nan)
    measures = {CLS_ON_THINGS: on_things, THINGS: np.full(len(looks), 100 * foreground.mean())}
    groups = {"things": foreground}
    groups |= {name: covered([t for t in things if belongs(t)], grid) for name, belongs in GROUPS.items()}
    return measures | {
        f"AUC {name}": np.array([auc(look, patches, ~foreground) for look in looks]) for name, patches in groups.items()
    }


def measure_last(looks: np.ndarray, about: tuple[Thing, ...] | None, grid: tuple[int, int]) -> Measures:
    """One question's attention to visual tokens [layers, N]; `about` is None where no question's things are known."""
    thirds = grid[0] // 3
    best = looks >= np.sort(looks, axis=1)[:, looks.shape[1] // 2, None]
    rows, kept = shares_of_rows(looks, grid), shares_of_rows(best.astype(float), grid)
    measures = {
        MASS: 100 * looks.sum(1),
        UPPER: 100 * rows[:, :thirds].sum(1),
        LOWER: 100 * rows[:, -thirds:].sum(1),
        KEPT_LOWER: 100 * kept[:, -thirds:].sum(1),
    }
    if about is None:
        return measures
    patches = covered(about, grid)
    share, area = share_on(looks, patches), patches.mean()
    if not patches.any():  # nothing to look at: "no", "0"
        share, area = np.full(len(looks), math.nan), math.nan
    return measures | {ASKED_SHARE: 100 * share, ASKED: np.full(len(looks), 100 * area)}


def batches(questions: list[dict], size: int) -> Iterator[list[dict]]:
    return (questions[start : start + size] for start in range(0, len(questions), size))


def picture_of(pixels: torch.Tensor, image_processor) -> np.ndarray:
    """What the tower saw, [1, 3, H, W], as float [H, W, 3] in [0, 1]."""
    mean, std = (np.array(values) for values in (image_processor.image_mean, image_processor.image_std))
    return (pixels[0].permute(1, 2, 0).float().numpy() * std + mean).clip(0, 1)


def watch_tower(
    setting: Setting, questions: list[dict], shown: Shown | None, prepare: Preparation
) -> tuple[dict[str, Means], list[Example]]:
    """The tower's measures by block, and the first pictures."""
    grid = grid_of(Parts.of(setting.model).tower)
    of_image = list({question["image"]: question for question in questions}.values())
    lines, examples = [], []
    for batch in batches(of_image, setting.batch_size):
        prompts = list(map(prepare, batch))
        looks, reach = (of.numpy() for of in tower_looks(setting.model, torch.cat([p.pixels for p in prompts])))
        for index, (question, prompt) in enumerate(zip(batch, prompts, strict=True)):
            measures = {DISTANCE: reach[:, index]}
            if shown is not None:
                measures = measure_cls(looks[:, index], shown.things[question["image"]], grid) | measures
            lines.append(measures)
            if len(examples) < NUM_EXAMPLES:
                examples.append(Example(picture_of(prompt.pixels, setting.image_processor), looks[:, index]))
    return summarise(lines, of_image), examples


def watch_decoder(
    setting: Setting, questions: list[dict], shown: Shown | None, prepare: Preparation
) -> tuple[dict[str, Means], list[Example], Means]:
    """The decoder's measures by layer, questions about the first pictures, and the spread over the rows of the grid
    in percent [layers, height]."""
    grid = grid_of(Parts.of(setting.model).tower)
    reader, lines, spread = Reader(setting), [], []
    examples: dict[str, Example] = {}
    kinds: set[str] = set()
    about = {} if shown is None else shown.about
    for batch in batches(questions, setting.batch_size):
        prompts = list(map(prepare, batch))
        looks = reader.looks(prompts, grid[0] * grid[1]).numpy()
        for index, (question, prompt) in enumerate(zip(batch, prompts, strict=True)):
            look, image = looks[:, index], question["image"]
            things = about.get((image, question["text"]), ())
            lines.append(measure_last(look, things if about else None, grid))
            spread.append({"rows": 100 * shares_of_rows(look, grid)})
            # Of another picture and another kind than the ones before.
            kind = question.get("category", image)
            wanted = (things or not about) and kind not in kinds
            if wanted and image not in examples and len(examples) < NUM_EXAMPLES:
                picture = picture_of(prompt.pixels, setting.image_processor)
                kinds.add(kind)
                examples[image] = Example(picture, look, question["text"], things)
    return summarise(lines, questions), list(examples.values()), summarise(spread, questions)["rows"]


def run(setting: Setting, folder: Path) -> str:
    """The study: table.md, table.csv, attention.png and the maps in `folder`; returns the table.

    Raises:
        ValueError: for questions without images, and for models that cut a picture into crops.
    """
    prepare = preparation(setting)
    check_one_view(prepare)
    questions = [question for question in setting.questions if question.get("image")]
    if not questions:
        raise ValueError("attention: expected questions with images, got none")
    drawn = read_shown(setting.data)
    if drawn is not None and any(question["image"] not in drawn.things for question in questions):
        raise ValueError(f"{setting.data / 'scenes.jsonl'}: expected a row for every image that the questions name")
    tower, pictures = watch_tower(setting, questions, drawn, prepare)
    decoder, asked, spread = watch_decoder(setting, questions, drawn, prepare)
    num_images = len({question["image"] for question in questions})
    note = f"Means over {num_images} pictures (tower) and {len(questions)} questions (decoder).\n"
    if drawn is None:
        note += "What needs to know where things are is left out: the data has no scenes.jsonl.\n"
    elif not drawn.about:
        note += "What a question is about is left out: its scenes cannot be drawn again.\n"
    text = write_tables({"tower block": tower, "decoder layer": decoder}, note, folder)
    maps.plot_measures(tower, decoder, spread, folder / "attention.png")
    maps.plot_tower(pictures, setting.model, folder / "attention-tower.png")
    maps.plot_decoder(asked, setting.model, folder / "attention-decoder.png")
    return text
