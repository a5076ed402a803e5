"""What every study is given, and what the pictures of a drawn benchmark show."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..scenes.files import benchmark_scenes
from ..scenes.world import GRID, Thing


@dataclass(frozen=True)
class Setting:
    """What every study is given.

    Args:
        tokenizer, model, image_processor: from `llava.eval.answering.load_checked`.
        model_path: where they came from.
        data: folder with questions.jsonl and images/.
        questions: with answers.
        tokens: visual tokens of an image, averaged over the decoder's layers.
        batch_size: prompts at a time.
        output: folder that the studies' own folders go into.
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    model_path: Path
    data: Path
    questions: list[dict]
    tokens: int
    batch_size: int
    output: Path

    @property
    def images(self) -> Path:
        return self.data / "images"


@dataclass(frozen=True)
class Shown:
    """What the pictures of a drawn benchmark show.

    Args:
        things: {image: things}.
        about: {(image, text of a question): the things that it takes to answer}; questions that are not the
            benchmark's own are missing.
    """

    things: dict[str, list[Thing]]
    about: dict[tuple[str, str], tuple[Thing, ...]]


def read_shown(data: Path) -> Shown | None:
    """Read scenes.jsonl; None where a data folder has none.

    Questions do not say what they are about, but the arguments that drew them do: the scenes are drawn again.
    """
    if not (data / "scenes.jsonl").is_file():
        return None
    rows = [json.loads(line) for line in (data / "scenes.jsonl").read_text().splitlines()]
    things = {row["image"]: [Thing(**thing) for thing in row["things"]] for row in rows}
    about = {}
    if (data / "arguments.json").is_file():
        arguments = json.loads((data / "arguments.json").read_text())
        drawn = benchmark_scenes(arguments["split"], arguments["number"], arguments["seed"])
        for (image, written), (scene, questions, _) in zip(things.items(), drawn, strict=True):
            if written == list(scene.things):  # else another version drew them
                about |= {(image, question.text): question.about for question in questions}
    return Shown(things, about)


def covered(things: list[Thing] | tuple[Thing, ...], grid: tuple[int, int]) -> np.ndarray:
    """The patches of a model's grid whose centres lie on things.

    Args:
        grid: (height, width) in patches of the model, which need not be the scene's.

    Returns:
        bool [height * width].
    """
    height, width = grid
    rows = ((np.arange(height) + 0.5) * GRID / height)[:, None]
    columns = ((np.arange(width) + 0.5) * GRID / width)[None]
    mask = np.zeros(grid, bool)
    for thing in things:
        left, upper, right, lower = thing.box
        mask |= (upper <= rows) & (rows < lower) & (left <= columns) & (columns < right)
    return mask.flatten()
