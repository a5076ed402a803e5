"""Draw what a reduction keeps of a picture: after the vision encoder, and after every pruning stage of the decoder.

    python -m vscan.plot IMAGE --model-path DIR --question "What is this?" --average 64
    python -m vscan.plot CLIP.mp4 --model-path DIR --average 64

A clip's eight frames stand in two rows, in order; budgets are those of a frame.
`overlay`, `assemble` and `figure` draw token numbers; `Observer` and `draw` see what one answer keeps.
"""

import textwrap
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..config import ReductionConfig
from ..eval.arguments import Parser, add, add_reduction_arguments, parse, reduction_config
from ..io.frames import check_sees_clips, is_clip, read_frames
from ..io.images import read_image
from ..io.load import Panel, at_hand, checkpoint_of

AVERAGE, SHARE = 64, 1 / 9  # without a budget; the share where pictures vary in size
QUESTION, CONV_MODE, MAX_NEW_TOKENS = "What is shown in this picture?", "vicuna_v1", 64
CLIP_QUESTION, CLIP_CONV_MODE = "What happens in this video?", "llava_v1"
COLOURS = ((255, 176, 0), (40, 160, 255))  # orange and blue: every kind of colour vision tells them apart
DIMMED = [value * 2 // 5 for value in range(256)]  # what is left of the brightness of a dropped patch, per channel
PANEL, PATCH = 480, 12  # pixels: the longer side of a panel, and the least that a patch takes
MARGIN, FONT_SIZE, LINE = 16, 20, 28


def overlay(image: Image.Image, grid: tuple[int, int], kept: dict[str, list[int]]) -> Image.Image:
    """A picture with its dropped patches dimmed, and kept ones as they are in a frame of their label's colour.

    Args:
        image: RGB, at least as large as the grid.
        grid: (height, width) in patches.
        kept: {label: tokens, counted in raster order}; the first label has the first colour.
    """
    drawn = image.point(DIMMED * 3)
    pen = ImageDraw.Draw(drawn)
    tops = [image.height * row // grid[0] for row in range(grid[0] + 1)]
    lefts = [image.width * column // grid[1] for column in range(grid[1] + 1)]
    for number, tokens in enumerate(kept.values()):
        for token in tokens:
            row, column = divmod(token, grid[1])
            left, top, right, bottom = box = lefts[column], tops[row], lefts[column + 1], tops[row + 1]
            drawn.paste(image.crop(box), box)
            frame = max(1, (right - left) // 6)
            pen.rectangle((left, top, right - 1, bottom - 1), outline=COLOURS[number], width=frame)
    return drawn


def assemble(tokens: list[int], grid: tuple[int, int], panel: Panel) -> list[int]:
    """Tokens, view * height * width + token of that view, as tokens of a panel's picture; other views are left out."""
    (height, width), (rows, columns), placed = grid, panel.tiles, []
    for token in tokens:
        view, patch = divmod(token, height * width)
        tile = view - panel.first
        if 0 <= tile < rows * columns:
            row = tile // columns * height + patch // width
            placed.append(row * columns * width + tile % columns * width + patch % width)
    return placed


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of a text that are at most `width` pixels wide."""
    for length in range(width // 3, 1, -1):  # in characters; hardly one is narrower than 3 pixels
        lines = textwrap.wrap(text, length)
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines


def figure(
    panels: list[Panel], grid: tuple[int, int], stages: list[tuple[str, dict[str, list[int]]]], texts: list[str]
) -> Image.Image:
    """One column a stage under its caption, one row a panel; below them the legend and some texts.

    Args:
        panels: at least one.
        grid: (height, width) of a view, in tokens.
        stages: (caption, {label: tokens as `assemble` takes them}), at least one; the labels are the same in all.
        texts: paragraphs.
    """
    rows = []
    for panel in panels:
        size = height, width = grid[0] * panel.tiles[0], grid[1] * panel.tiles[1]
        side = max(PATCH, PANEL // max(size))  # whole pixels: patches are all alike
        image = panel.image.resize((width * side, height * side), Image.Resampling.LANCZOS)
        placed = [{label: assemble(kept[label], grid, panel) for label in kept} for _, kept in stages]
        rows.append([overlay(image, size, kept) for kept in placed])
    column = max(row[0].width for row in rows) + MARGIN
    width = len(stages) * column + MARGIN
    font = ImageFont.load_default(size=FONT_SIZE)
    lines = [line for text in texts for line in wrap(text, font, width - 2 * MARGIN)]
    height = sum(row[0].height + MARGIN for row in rows) + (2 + len(lines)) * LINE + 3 * MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    write = partial(pen.text, fill="#282828", font=font)
    for number, (caption, _) in enumerate(stages):
        x, y = MARGIN + number * column, MARGIN + LINE + MARGIN // 2
        write((x, MARGIN), caption)
        for row in rows:
            sheet.paste(row[number], (x, y))
            y += row[number].height + MARGIN
    x = MARGIN
    for label, colour in [*zip(stages[0][1], COLOURS, strict=False), ("dropped", (DIMMED[255],) * 3)]:
        pen.rectangle((x, y + 4, x + 15, y + 19), fill=colour)
        write((x + 24, y), label)
        x += 24 + round(font.getlength(label)) + 2 * MARGIN
    for number, line in enumerate(lines, start=1):
        write((MARGIN, y + MARGIN // 2 + number * LINE), line)
    return sheet


class Observer:
    """Remembers what a method selected from; `method` is the one that it watches."""

    def __init__(self, method):
        self.original, self.method, self.seen = method, copy(method), None
        object.__setattr__(self.method, "encode", self.encode)  # of this one alone, whose class stays what it is

    def encode(self, views, num: int):
        self.seen = views, num
        return self.original.encode(views, num)

    def parts(self, kept: list[int]) -> dict[str, list[int]]:
        """What was kept, by the scan that selected it; methods other than VScan have one part."""
        from ..methods.vscan import VScan
        from ..select.scan import scan

        if self.seen is None or not isinstance(self.original, VScan):
            return {f"kept by {type(self.original).__name__}": kept}
        (views, num), method = self.seen, self.original
        scores = views.rows[method.local_layer], views.rows[method.global_layer]
        rows, _ = scan(*scores, views.grid, num, method.window, method.global_share, method.capped)
        local = {view * views.features.shape[1] + token for view, row in enumerate(rows.tolist()) for token in row}
        return {"local scan": sorted(local.intersection(kept)), "global scan": sorted(set(kept) - local)}


def draw(loaded: tuple, config: ReductionConfig, image: Path, question: str) -> Image.Image:
    """Answer a question about a picture or a clip, and draw what was kept.

    Args:
        loaded: (tokenizer, model, image processor, ...), of any family.
    """
    from ..api import apply_config

    loaded = at_hand(*loaded[:3])
    reduction = apply_config(loaded.model, config, loaded.tokenizer)
    try:
        observer = Observer(reduction.method)
        reduction.fitted = replace(reduction.fitted, method=observer.method)
        kind, conv_mode = ("video", CLIP_CONV_MODE) if is_clip(image) else ("image", CONV_MODE)
        prepare = loaded.preparation(lambda asked: str(image), conv_mode, reduction)
        prompt = prepare({kind: image.name, "text": question})
        generation = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": MAX_NEW_TOKENS}
        (answer,) = loaded.answering(reduction, **generation)([prompt])
        row, sight = reduction.stats().rows[0], loaded.sight(prompt, prepare)
    finally:
        reduction.remove()
    stages, starts = [], dict(reduction.fitted.layers)
    for (layer, number), kept in zip(row.stages, row.kept, strict=True):
        name = "encoder" if layer == 0 and 0 not in starts else f"layer {layer}"
        parts = observer.parts([sight.origins[token] for token in kept])
        stages.append((f"{name}: {number} of {row.visual_tokens}", parts))
    return figure(sight.panels, sight.grid, stages, [f"Question: {question}", f"Answer: {answer.text}"])


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible."""
    epilog = f"Without a budget: an average of {AVERAGE} tokens, or of a ninth where pictures vary in size."
    parser = Parser(prog="python -m vscan.plot", epilog=epilog, add_help=False)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture, or a clip such as DIR/NAME.mp4")
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--question", default=None, help=f"default: {QUESTION} (of a clip: {CLIP_QUESTION})")
    add(parser, "--output", type=Path, help="PNG file to write; default: <name of IMAGE>_kept.png in this folder")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add_reduction_arguments(parser)
    args, hyper_parameters = parse(parser, argv)
    config = reduction_config(args, hyper_parameters)
    output = args.output or Path(f"{args.image.stem}_kept.png")
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise ValueError(f"--output: expected a .png file in a folder that exists, got {str(output)!r}")

    # A broken picture or clip is reported before the model is looked at.
    if is_clip(args.image):
        read_frames(args.image, lambda number, rate: [0, number - 1], timed=False)
    else:
        read_image(args.image)
    checkpoint = checkpoint_of(args.model_path)
    if is_clip(args.image):
        check_sees_clips(checkpoint)
    if config is None:
        average = AVERAGE if checkpoint.num_tokens else SHARE
        config = ReductionConfig(args.method, average=average, positions=args.positions, fields=hyper_parameters)
    config = checkpoint.settled(config)
    question = args.question or (CLIP_QUESTION if is_clip(args.image) else QUESTION)
    draw(checkpoint.load(args.device, args.dtype), config, args.image, question).save(output)
    print(output)
