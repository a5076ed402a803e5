"""What a scene puts on each patch, and what [CLS] is to know. Nothing of it is in the shipped model."""

import numpy as np

from ..scenes.world import COLOURS, GLYPH_SIDE, GLYPHS, GRID, SHAPES, SIDES, Scene, Thing

# Classes of each label of a patch, 0 for ground: shape (or sign), colour, letter, the patch's place in its thing, and
# the thing's box (x1, y1, x2, y2 in patches, plus one).
NUM_CLASSES = (len(SHAPES) + 2, len(COLOURS) + 1, len(GLYPHS) + 1, 29, *[GRID + 2] * 4)
SHAPE, COLOUR, LETTER, PLACE = range(4)
NUM_SCENE_CLASSES = len(SHAPES) * len(COLOURS) + len(COLOURS) + len(GLYPHS)
_COLOURS = list(COLOURS)
MAX_LETTERS = 3
# Classes of what a thing is, 0 for none such: shape (or sign), colour, box and letters.
THING_CLASSES = (len(SHAPES) + 2, len(COLOURS) + 1, *[GRID + 2] * 4, *[len(GLYPHS) + 1] * MAX_LETTERS)


def thing_labels(thing: Thing | None) -> list[int]:
    """What a question's words for a thing stand for: its classes, all 0 if it is not there."""
    if thing is None:
        return [0] * len(THING_CLASSES)
    shape = len(SHAPES) + 1 if thing.is_sign else SHAPES.index(thing.shape) + 1
    letters = [GLYPHS.index(glyph) + 1 for glyph in thing.text]
    letters += [0] * (MAX_LETTERS - len(letters))
    return [shape, _COLOURS.index(thing.colour) + 1, *(edge + 1 for edge in thing.box), *letters]


def patch_labels(scene: Scene) -> np.ndarray:
    """Classes of every patch of the scene's window: int64 [side, side, 8]."""
    labels = np.zeros((scene.side, scene.side, len(NUM_CLASSES)), np.int64)
    for thing in scene.things:
        top, left = thing.row - scene.row, thing.column - scene.column
        region = labels[top : top + thing.height, left : left + thing.width]
        region[..., SHAPE] = len(SHAPES) + 1 if thing.is_sign else SHAPES.index(thing.shape) + 1
        region[..., COLOUR] = _COLOURS.index(thing.colour) + 1
        region[..., 4:] = np.array(thing.box) + 1
        rows, columns = np.indices((thing.height, thing.width))
        if thing.is_sign:
            letters = np.array([GLYPHS.index(glyph) + 1 for glyph in thing.text])
            region[..., LETTER] = letters[columns // GLYPH_SIDE]
            region[..., PLACE] = 17 + columns * GLYPH_SIDE + rows
        else:
            region[..., PLACE] = 1 + rows * SIDES[-1] + columns
    return labels


def scene_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What is there, for [CLS], and how much each label counts.

    Small shapes count half: a caption names them less often than large ones, but it does not deny them.

    Returns:
        float32 [76] of 0 and 1, float32 [76] of weights.
    """
    present, weight = np.zeros(NUM_SCENE_CLASSES, np.float32), np.ones(NUM_SCENE_CLASSES, np.float32)
    num_pairs = len(SHAPES) * len(COLOURS)
    for thing in scene.things:
        colour = _COLOURS.index(thing.colour)
        if thing.is_sign:
            indices = [num_pairs + colour, *(num_pairs + len(COLOURS) + GLYPHS.index(glyph) for glyph in thing.text)]
        else:
            indices = [SHAPES.index(thing.shape) * len(COLOURS) + colour]
            if thing.width == SIDES[0]:
                weight[indices] = 0.5
        present[indices] = 1
    return present, weight
