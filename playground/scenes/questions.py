"""What is asked about a scene. The answers follow from the scene's description alone."""

from dataclasses import dataclass

import numpy as np

from .world import COLOURS, GRID, SHAPES, Scene, Thing, pick

SHORT = "Answer the question using a single word or phrase."
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes:"
# Kinds of question, and the share that the best constant answer gets (nothing for texts and boxes).
KINDS = {
    "existence": 1 / 2,
    "attribute": (1 / len(COLOURS) + 1 / len(SHAPES)) / 2,
    "relation": 1 / 2,
    "counting": 1 / 4,
    "reading": 0.0,
    "box": 0.0,
}
MAX_COUNT = 3
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Args:
        kind: a key of KINDS.
        text: as it stands after the image in the prompt, with the benchmark's format instruction.
        answer: what the model is to say.
        about: the things whose patches it takes to answer; empty if none.
    """

    kind: str
    text: str
    answer: str
    about: tuple[Thing, ...] = ()


def coordinate(patches: int) -> str:
    """A coordinate as it is written in boxes: a share of the picture's side, two decimals."""
    return f"{patches / GRID:.2f}"


def is_there(name: str) -> str:
    """The text that asks for a thing of this name."""
    return f"Is there {'an' if name[0] == 'o' else 'a'} {name} in the image?\n{SHORT}"


def absent(scene: Scene) -> dict[str, list[str]]:
    """Names of shapes that are not there, by POPE's categories, which say how likely one is to believe them there.

    Returns:
        random: all of them; popular: the shape is there in another colour; adversarial: shape and colour are both
        there, in two things. Only the last may be empty.
    """
    names = {thing.name for thing in scene.things}
    pairs = {
        "random": {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES},
        "popular": {f"{colour} {thing.shape}" for colour in COLOURS for thing in scene.shapes},
        "adversarial": {f"{one.colour} {other.shape}" for one in scene.shapes for other in scene.shapes},
    }
    return {category: sorted(found - names) for category, found in pairs.items()}


def existence(scene: Scene, chance: np.random.Generator, answer: str) -> Question:
    """Is there a thing? Absent ones have a colour and a shape that are both there, wherever such a pair is left."""
    if answer == "yes":
        about = (pick(chance, scene.shapes),)
        name = about[0].name
    else:
        about = ()
        names = absent(scene)
        name = pick(chance, names["adversarial"] or names["random"])
    return Question("existence", is_there(name), answer, about)


def attributes(scene: Scene) -> list[Question]:
    """The colour of every shape that is there once, the shape of every colour that is there once."""
    questions = []
    for thing in scene.shapes:
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            text = f"What color is the {thing.shape}?\n{SHORT}"
            questions.append(Question("attribute", text, thing.colour, (thing,)))
        if sum(other.colour == thing.colour for other in scene.things) == 1:
            text = f"What shape is the {thing.colour} object?\n{SHORT}"
            questions.append(Question("attribute", text, thing.shape, (thing,)))
    return questions


def relations(scene: Scene, margin: int = 3) -> list[Question]:
    """Left or right, above or below, for every ordered pair whose centres are `margin` patches apart that way."""
    questions = []
    for one in scene.things:
        for other in scene.things:
            across = one.column + one.width / 2 - other.column - other.width / 2
            down = one.row + one.height / 2 - other.row - other.height / 2
            start, end = f"Is the {one.name} ", f" the {other.name}?\n{SHORT}"
            if abs(across) >= margin:
                text = f"{start}to the left or to the right of{end}"
                questions.append(Question("relation", text, "left" if across < 0 else "right", (one, other)))
            if abs(down) >= margin:
                questions.append(
                    Question("relation", f"{start}above or below{end}", "above" if down < 0 else "below", (one, other))
                )
    return questions


def counts(scene: Scene) -> list[Question]:
    """How many of every shape and of every colour there are, none included, three at most."""
    questions = []
    for group, field, names in (
        ("{}", "shape", PLURALS),
        ("{} shapes", "colour", {colour: colour for colour in COLOURS}),
    ):
        for value, name in names.items():
            about = tuple(thing for thing in scene.shapes if getattr(thing, field) == value)
            if len(about) <= MAX_COUNT:
                text = f"How many {group.format(name)} are there?\n{SHORT}"
                questions.append(Question("counting", text, str(len(about)), about))
    return questions


def readings(scene: Scene) -> list[Question]:
    """What each sign says."""
    return [
        Question("reading", f"What does the {sign.colour} sign say?\n{SHORT}", sign.text, (sign,))
        for sign in scene.signs
    ]


def boxes(scene: Scene) -> list[Question]:
    """Where each thing is."""
    return [
        Question("box", f"{LOCATE} the {thing.name}", f"[{', '.join(map(coordinate, thing.box))}]", (thing,))
        for thing in scene.things
    ]


def one_of_each(scene: Scene, number: int, chance: np.random.Generator) -> list[Question] | None:
    """A benchmark's questions about one scene, one of each kind; None if the scene has not what it takes.

    Args:
        number: of the scene; it settles what has to be balanced: yes and no, the four counts, the four relations,
            colour and shape.
    """
    answers = {
        "attribute": ("color", "shape")[number % 2],
        "relation": ("left", "right", "above", "below")[number % 4],
        "counting": str(number // 2 % (MAX_COUNT + 1)),
    }
    choices = {
        "attribute": [q for q in attributes(scene) if q.text.startswith(f"What {answers['attribute']}")],
        "relation": [q for q in relations(scene) if q.answer == answers["relation"]],
        "counting": [q for q in counts(scene) if q.answer == answers["counting"]],
        "reading": readings(scene),
        "box": boxes(scene),
    }
    if not all(choices.values()):
        return None
    chosen = {kind: pick(chance, options) for kind, options in choices.items()}
    chosen["existence"] = existence(scene, chance, ("yes", "no")[number // 8 % 2])
    return [chosen[kind] for kind in KINDS]


def for_training(scene: Scene, chance: np.random.Generator, num_counts: int = 2) -> list[Question]:
    """About 25 questions of all kinds, answers balanced, in any order.

    Args:
        num_counts: counting questions with the same answer; some may be asked twice.
    """
    questions = [existence(scene, chance, answer) for answer in ("yes", "no", "yes", "no")]
    for options, number in ((attributes(scene), 3), (relations(scene, 2), 4)):
        questions += [options[index] for index in chance.permutation(len(options))[:number]]
    by_answer: dict[str, list[Question]] = {}
    for question in counts(scene):
        by_answer.setdefault(question.answer, []).append(question)
    questions += [pick(chance, options) for options in by_answer.values() for _ in range(num_counts)]
    questions += readings(scene) + boxes(scene)
    return [questions[index] for index in chance.permutation(len(questions))]
