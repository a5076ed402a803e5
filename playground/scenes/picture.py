"""A scene as pixels: textured grey ground with grey strokes, shapes and signs upon it, all on the patch grid."""

from functools import cache

import numpy as np

from .world import COLOURS, GLYPH_SIDE, Scene

PATCH = 4  # pixels along a patch's side
INK = np.array((25, 25, 25), np.float32)  # of the letters on a sign

# Seven rows of five dots a letter, a hexadecimal digit pair a row, the leftmost dot the highest bit.
FONT = {
    "2": "0E11010204081F",
    "3": "1F02040201110E",
    "4": "02060A121F0202",
    "5": "1F101E0101110E",
    "6": "0608101E11110E",
    "7": "1F010102040808",
    "9": "0E11110F01020C",
    "C": "0E11101010110E",
    "F": "1F10101E101010",
    "H": "1111111F111111",
    "J": "0702020202120C",
    "K": "11121418141211",
    "L": "1010101010101F",
    "M": "111B1515111111",
    "P": "1E11111E101010",
    "T": "1F040404040404",
    "V": "11111111110A04",
    "X": "11110A040A1111",
    "Y": "1111110A040404",
    "Z": "1F01020408101F",
}


@cache
def letter(glyph: str) -> np.ndarray:
    """Where a letter is inked: bool [8, 8]."""
    rows = bytes.fromhex(FONT[glyph])
    mask = np.zeros((GLYPH_SIDE * PATCH, GLYPH_SIDE * PATCH), bool)
    for index, row in enumerate(rows):
        mask[index, 1:6] = [row >> (4 - bit) & 1 for bit in range(5)]
    return mask


@cache
def coverage(shape: str, side: int) -> np.ndarray:
    """How much of each pixel a shape covers: float32 [side, side, 1] in [0, 1], from 8 x 8 samples a pixel."""
    ticks = (np.arange(side * 8) + 0.5) / (side * 4) - 1  # (-1, 1)
    x, y = np.meshgrid(ticks, ticks)
    radius = np.hypot(x, y)
    inside = {
        "circle": radius < 0.98,
        "square": np.maximum(abs(x), abs(y)) < 0.86,
        "triangle": (y < 0.92) & (abs(x) * 2 < y + 1),
        "diamond": abs(x) + abs(y) < 0.98,
        "cross": (np.minimum(abs(x), abs(y)) < 0.32) & (np.maximum(abs(x), abs(y)) < 0.98),
        "ring": (radius < 0.98) & (radius > 0.52),
    }[shape]
    return inside.reshape(side, 8, side, 8).mean((1, 3), dtype=np.float32)[..., None]


def draw_ground(chance: np.random.Generator, side: int) -> np.ndarray:
    """Grey texture and strokes: float32 [side, side, 3]."""
    coarse = chance.integers(-18, 19, (side // 8 + 1, side // 8 + 1)).astype(np.float32)
    ground = np.kron(coarse, np.ones((8, 8), np.float32))[:side, :side] + chance.integers(95, 150)
    steps = np.linspace(0, 1, side)
    for _ in range(max(2, side // 12)):
        (y1, x1), (dy, dx) = chance.integers(0, side, 2), chance.integers(-side // 3, side // 3 + 1, 2)
        rows, columns = (y1 + steps * dy).astype(int), (x1 + steps * dx).astype(int)
        seen = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        ground[rows[seen], columns[seen]] = chance.integers(50, 200)
    return np.repeat(ground[..., None], 3, axis=2)


def draw(scene: Scene, chance: np.random.Generator) -> np.ndarray:
    """A scene's picture.

    Args:
        chance: for the texture.

    Returns:
        uint8 [4 x side, 4 x side, 3].
    """
    picture = draw_ground(chance, scene.side * PATCH)
    for thing in scene.things:
        top, left = (thing.row - scene.row) * PATCH, (thing.column - scene.column) * PATCH
        region = picture[top : top + thing.height * PATCH, left : left + thing.width * PATCH]
        colour = np.array(COLOURS[thing.colour], np.float32) + chance.integers(-12, 13, 3)
        if thing.is_sign:
            region[:] = colour
            inked = np.concatenate([letter(glyph) for glyph in thing.text], axis=1)
            region[inked] = INK
        else:
            region += coverage(thing.shape, thing.width * PATCH) * (colour - region)
    picture += chance.integers(-8, 9, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)
