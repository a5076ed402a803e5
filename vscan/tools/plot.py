"""Draw what a reduction keeps of a picture: after the vision encoder, and after every pruning stage of the decoder.

    python -m vscan.plot IMAGE --model-path DIR --question "What is this?" \\
        --visual_token_num 96 --layer_list '[16]' --image_token_list '[32]'

`overlay`, `assemble` and `figure` draw token numbers; `Observer` and `draw` see what one answer keeps.
"""

import textwrap
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..config import ReductionConfig, prune_layer_of
from ..eval.arguments import Parser, add, add_reduction_arguments, parse, reduction_config
from ..io.checkpoint import load_checked
from ..io.images import read_image

QUESTION, CONV_MODE, MAX_NEW_TOKENS = "What is shown in this picture?", "vicuna_v1", 64
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


@dataclass(frozen=True)
class Panel:
    """A picture that is shown: one view, or `tiles` (height, width) of them from `first` on, in raster order."""

    image: Image.Image
    first: int = 0
    tiles: tuple[int, int] = (1, 1)


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
    """Stands before a method and remembers what it selected from; all else is the method's own."""

    def __init__(self, method):
        self.method, self.seen = method, None

    def __getattr__(self, name: str):
        return getattr(self.method, name)

    def encode(self, views, num: int):
        self.seen = views, num
        return self.method.encode(views, num)

    def parts(self, kept: list[int]) -> dict[str, list[int]]:
        """What was kept, by the scan that selected it; methods other than VScan have one part."""
        from ..methods.vscan import VScan
        from ..select.scan import scan

        if self.seen is None or not isinstance(self.method, VScan):
            return {f"kept by {type(self.method).__name__}": kept}
        (views, num), method = self.seen, self.method
        scores = views.rows[method.local_layer], views.rows[method.global_layer]
        rows, _ = scan(*scores, views.grid, num, method.window, method.global_share, method.capped)
        local = {view * views.features.shape[1] + token for view, row in enumerate(rows.tolist()) for token in row}
        return {"local scan": sorted(local.intersection(kept)), "global scan": sorted(set(kept) - local)}


def panel_of(pixels, image_processor, first: int = 0, tiles: tuple[int, int] = (1, 1)) -> Panel:
    """What the encoder saw, padded or cropped as it was, from pixels [V, 3, H, W] as `image_processor` made them."""
    mean, std = (pixels.new_tensor(getattr(image_processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))
    values = ((pixels[first : first + tiles[0] * tiles[1]] * std + mean) * 255).round().clamp(0, 255).byte()
    joined = values.unflatten(0, tiles).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # H' W' 3
    return Panel(Image.fromarray(joined.numpy()), first, tiles)


def origins(model, prompt, num_tokens: int) -> list[int]:
    """Where each visual token of a prompt comes from, as `assemble` takes it; -1 for a newline."""
    import torch

    from ..compat import pack_crops

    # Numbers go the way that features go, through the model's own packing.
    crops = torch.arange(len(prompt.pixels) * num_tokens).view(-1, num_tokens, 1).float()
    newline = torch.tensor([-1.0])
    if hasattr(model, "pack_crops"):
        crops = model.pack_crops(crops, prompt.image_size, newline)
    elif model.config.model_type == "llava_next":
        sizes = torch.tensor([prompt.image_size[::-1]])
        crops = pack_crops(model.base_model, [crops], sizes, newline)[0]
    return crops.flatten().int().tolist()


def draw(loaded: tuple, config: ReductionConfig, image: Path, question: str) -> Image.Image:
    """Answer a question about a picture with what `load_pretrained_model` returned, and draw what was kept."""
    from llava.eval.answering import Answering, Preparation
    from llava.mm_utils import select_best_resolution

    from ..api import apply_config

    tokenizer, model, processor, _ = loaded
    model.generation_config.max_length = None  # the checkpoint's own would be warned about
    reduction = apply_config(model, config)
    reduction.method = observer = Observer(reduction.method)
    prepare = Preparation.of(model, tokenizer, processor, image.parent, CONV_MODE, reduction=reduction)
    prompt = prepare({"image": image.name, "text": question})
    generation = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": MAX_NEW_TOKENS}
    (answer,) = Answering(tokenizer, model, reduction, **generation)([prompt])

    row, origin = reduction.stats().rows[0], origins(model, prompt, reduction.num_tokens)
    stages = []
    for (layer, number), kept in zip(row.stages, row.kept, strict=True):
        name = "encoder" if layer == 0 and 0 not in dict(config.layers) else f"layer {layer}"
        stages.append((f"{name}: {number} of {row.visual_tokens}", observer.parts([origin[token] for token in kept])))
    reduction.remove()
    panels = [panel_of(prompt.pixels, processor)]
    if len(prompt.pixels) > 1:
        width, height = select_best_resolution(prompt.image_size, prepare.image_grid_pinpoints)
        side = prompt.pixels.shape[-1]
        panels.append(panel_of(prompt.pixels, processor, 1, (height // side, width // side)))
    grid = (isqrt(reduction.num_tokens),) * 2  # CLIP sees squares
    return figure(panels, grid, stages, [f"Question: {question}", f"Answer: {answer.text}"])


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible."""
    epilog = "Without a budget: 96 tokens after the encoder, 32 from the middle layer of the decoder on."
    parser = Parser(prog="python -m vscan.plot", epilog=epilog, add_help=False)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="the picture")
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--question", default=QUESTION, help=f"default: {QUESTION}")
    add(parser, "--output", type=Path, help="PNG file to write; default: <name of IMAGE>_kept.png in this folder")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add_reduction_arguments(parser)
    args, hyper_parameters = parse(parser, argv)
    config = reduction_config(args, hyper_parameters)
    output = args.output or Path(f"{args.image.stem}_kept.png")
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise ValueError(f"--output: expected a .png file in a folder that exists, got {str(output)!r}")

    # llava imports vscan; only what runs a command may import it the other way.
    from llava.model.check import check_checkpoint, check_reduction

    read_image(args.image)  # a broken picture is reported before the model is looked at
    stored = check_checkpoint(args.model_path)
    if config is None:
        config = ReductionConfig(args.method, 96, {prune_layer_of(stored): 32}, args.positions, hyper_parameters)
    check_reduction(config, stored, args.model_path)

    from llava.model.builder import load_pretrained_model

    loaded = load_checked(load_pretrained_model, args.model_path, args.device, dtype=args.dtype)
    draw(loaded, config, args.image, args.question).save(output)
    print(output)
