"""What a scene holds: coloured shapes and signs on the patch grid, drawn by lot, each scene in one split only."""

import zlib
from dataclasses import dataclass

import numpy as np

GRID = 24  # patches along a side of the whole picture
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "orange": (240, 140, 30),
    "purple": (140, 60, 180),
    "cyan": (60, 200, 210),
    "pink": (245, 130, 190),
}
GLYPHS = "2345679CFHJKLMPTVXYZ"
GLYPH_SIDE = 2  # patches
SIDES = (2, 3, 4)  # of a shape, in patches; half of all shapes have the first
MAX_FOREGROUND = 0.1  # of the patches of a whole picture
SPLITS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Thing:
    """A shape or a sign.

    Args:
        colour: a key of COLOURS.
        shape: one of SHAPES, or "sign".
        row, column: of its upper left patch.
        height, width: in patches.
        text: what a sign says, two or three of GLYPHS.
    """

    colour: str
    shape: str
    row: int
    column: int
    height: int
    width: int
    text: str = ""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2) in patches."""
        return self.column, self.row, self.column + self.width, self.row + self.height

    @property
    def is_sign(self) -> bool:
        return self.shape == "sign"


@dataclass(frozen=True)
class Scene:
    """Things inside a window of the 24 x 24 grid; the whole grid but for the first stages of training.

    Args:
        things: none touches another, no two have the same name.
        row, column, side: the window, in patches.
    """

    things: tuple[Thing, ...]
    row: int = 0
    column: int = 0
    side: int = GRID

    @property
    def shapes(self) -> list[Thing]:
        return [thing for thing in self.things if not thing.is_sign]

    @property
    def signs(self) -> list[Thing]:
        return [thing for thing in self.things if thing.is_sign]

    @property
    def foreground(self) -> float:
        """Share of the patches that things cover."""
        return sum(thing.height * thing.width for thing in self.things) / self.side**2

    @property
    def split(self) -> str:
        """The one split this scene may be in: a tenth of all scenes is for the test, a tenth for validation."""
        description = repr(sorted((t.name, t.text, t.row, t.column, t.height) for t in self.things))
        return {0: "test", 1: "validation"}.get(zlib.crc32(description.encode()) % 10, "train")


def pick(chance: np.random.Generator, options):
    """One of a sequence by lot."""
    return options[int(chance.integers(len(options)))]


def draw_things(chance: np.random.Generator, side: int = GRID) -> list[tuple[str, str, int, int, str]]:
    """(colour, shape, height, width, text) of what a scene shall hold; a window of 12 patches holds less."""
    small = side <= 12
    num_signs = int(chance.integers(1, 4)) if small else 1 if chance.random() < 0.6 else 2
    num_shapes = int(chance.integers(1, 4) if small else chance.integers(3, 6))
    things, names = [], set()
    for _ in range(num_signs):
        colour = pick(chance, [c for c in COLOURS if (c, "sign") not in names])
        names.add((colour, "sign"))
        text = "".join(pick(chance, GLYPHS) for _ in range(int(chance.integers(2, 4))))
        things.append((colour, "sign", GLYPH_SIDE, GLYPH_SIDE * len(text), text))
    shapes: list[tuple[str, str]] = []
    while len(shapes) < num_shapes:
        colour, shape = pick(chance, list(COLOURS)), pick(chance, SHAPES)
        # Counts above one need things in common.
        if shapes and chance.random() < 0.6:
            other = pick(chance, shapes)
            colour, shape = (other[0], shape) if chance.random() < 0.5 else (colour, other[1])
        if (colour, shape) not in names:
            names.add((colour, shape))
            shapes.append((colour, shape))
    for colour, shape in shapes:
        length = SIDES[0] if chance.random() < 0.5 else pick(chance, SIDES[1:])
        things.append((colour, shape, length, length, ""))
    return things


def place(chance: np.random.Generator, sizes: list[tuple[int, int]], side: int) -> list[tuple[int, int]] | None:
    """Upper left patches for things of (height, width), a patch of ground between any two; None if that failed."""
    taken = np.zeros((side + 2, side + 2), bool)
    places = []
    for height, width in sizes:
        for _ in range(20):
            row, column = int(chance.integers(side - height + 1)), int(chance.integers(side - width + 1))
            if not taken[row : row + height + 2, column : column + width + 2].any():
                break
        else:
            return None
        taken[row + 1 : row + height + 1, column + 1 : column + width + 1] = True
        places.append((row, column))
    return places


def draw_scene(chance: np.random.Generator, split: str = "train", side: int = GRID) -> Scene:
    """A scene of one split by lot.

    Args:
        split: "train", "validation" or "test".
        side: of the window, in patches; one smaller than the grid lies anywhere on it.
    """
    while True:
        row, column = (int(chance.integers(GRID - side + 1)) for _ in range(2))
        things = draw_things(chance, side)
        places = place(chance, [(height, width) for _, _, height, width, _ in things], side)
        if places is None:
            continue
        placed = [
            Thing(colour, shape, row + top, column + left, height, width, text)
            for (colour, shape, height, width, text), (top, left) in zip(things, places, strict=True)
        ]
        order = chance.permutation(len(placed))
        scene = Scene(tuple(placed[index] for index in order), row, column, side)
        if scene.split == split and (side < GRID or scene.foreground <= MAX_FOREGROUND):
            return scene


def source(split: str, seed: int, number: int) -> np.random.Generator:
    """The random numbers of one scene of a benchmark."""
    return np.random.default_rng([SPLITS[split], seed, number])
