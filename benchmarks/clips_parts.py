"""What `benchmarks.clips` measures and prints."""

import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image

from llava.eval.clips import clip_processor
from llava.video import read_clip
from vscan.api import apply_config
from vscan.config import ReductionConfig
from vscan.io.frames import ClipFolder, check_sees_clips
from vscan.io.load import checkpoint_of
from vscan.tools.timing import clock_of, peak_bytes, spread, table

READ, PIXELS, ANSWER = "frames", "pixels", "answer"
DENSE, REDUCED = "dense", "reduced"


def draw(file: Path, number: int, width: int, seed: int) -> None:
    """Write a clip of a square that moves over noise."""
    size, chance = (width // 2 * 2, width * 3 // 8 * 2), torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (size[1] // 8, size[0] // 8, 3), generator=chance, dtype=torch.uint8)
    ground = Image.fromarray(noise.numpy()).resize(size)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for step in range(number):
            frame = ground.copy()
            frame.paste((255, 40 * seed % 256, 0), (step, step, step + width // 4, step + width // 4))
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


class Loader:
    """A loaded checkpoint, and some clips that it is asked about together.

    Args:
        args: the command's flags.
        folder: where the clips go.
    """

    def __init__(self, args: Namespace, folder: Path):
        checkpoint = checkpoint_of(args.model_path)
        check_sees_clips(checkpoint)
        self.config = checkpoint.settled(ReductionConfig(average=args.average))
        for number in range(args.batch_size):
            draw(folder / f"{number}.mp4", args.frames, args.width, number)
        self.files = [folder / f"{number}.mp4" for number in range(args.batch_size)]
        self.loaded = checkpoint.load(args.device, args.dtype)
        self.device, self.new_tokens = self.loaded.model.device, args.new_tokens
        self.processor = clip_processor(self.loaded.image_processor, hasattr(self.loaded.model, "encode_images"))
        prepare = self.loaded.preparation(ClipFolder(str(folder)), "llava_v1", None)
        questions = [{"video": str(number), "text": "What happens?"} for number in range(args.batch_size)]
        self.prompts = [prepare(question) for question in questions]

    def answers(self, kind: str, size: int) -> Callable[[], None]:
        """What answers all clips, so many at a time, dense or reduced; only one kind at a time can be in force."""
        reduction = None if kind == DENSE else apply_config(self.loaded.model, self.config, self.loaded.tokenizer)
        greedy = {"do_sample": False, "min_new_tokens": self.new_tokens, "max_new_tokens": self.new_tokens}
        answering = self.loaded.answering(reduction, **greedy, temperature=None, top_p=None)

        def run() -> None:
            try:
                for start in range(0, len(self.prompts), size):
                    answering(self.prompts[start : start + size])
            finally:
                if reduction is not None:
                    reduction.remove()

        return run


def measure(loader: Loader, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of every part in each round, for one clip, and peaks of memory in bytes.

    Returns:
        Both by name: of answering, such as "reduced 4", with the clips at a time.
    """
    _, clock = clock_of(loader.device)
    seconds, number = defaultdict(list), len(loader.files)
    sizes = sorted({1, number})
    peaks = {
        f"{kind} {size}": peak_bytes(loader.answers(kind, size), loader.device)
        for kind in (DENSE, REDUCED)
        for size in sizes
    }

    def timed(name: str, action: Callable):
        start = clock()
        result = action()
        seconds[name].append((clock() - start) / number)
        return result

    for _ in range(rounds):
        clips = timed(READ, lambda: [read_clip(file) for file in loader.files])
        timed(PIXELS, lambda clips=clips: [loader.processor.video(frames) for frames in clips])
        for size in sizes:
            for kind in (DENSE, REDUCED):
                timed(f"{kind} {size}", loader.answers(kind, size))
    return dict(seconds), peaks


def report(seconds: dict[str, list[float]], peaks: dict[str, int]) -> str:
    """A table with a line for every number of clips at a time."""
    before = [sum(parts) for parts in zip(seconds[READ], seconds[PIXELS], strict=True)]
    lines = []
    for size in sorted({int(name.split()[1]) for name in peaks}):
        dense, reduced = (seconds[f"{kind} {size}"] for kind in (DENSE, REDUCED))
        line = [str(size)]
        for of_kind in (dense, reduced):
            rates = [1 / (early + late) for early, late in zip(before, of_kind, strict=True)]
            line += [spread(of_kind, "s"), spread(rates)]
        whole = [(early + a) / (early + b) for early, a, b in zip(before, dense, reduced, strict=True)]
        line += [spread([a / b for a, b in zip(dense, reduced, strict=True)]), spread(whole)]
        held = [peaks[f"{kind} {size}"] for kind in (DENSE, REDUCED)]
        line += [*(f"{num_bytes / 2**20:.1f} MiB" for num_bytes in held), f"{held[1] / held[0]:.3f}"]
        lines.append(line)
    head = ["clips at a time", "dense answer", "clips a second", "reduced answer", "clips a second"]
    head += ["answer d/r", "loader d/r", "dense peak", "reduced peak", "peak r/d"]
    parts = f"of a clip: frames {spread(seconds[READ], 's')}, pixels {spread(seconds[PIXELS], 's')}"
    return f"{parts}\n\n{table(head, lines)}"


def run(args: Namespace) -> None:
    """Measure what the flags ask for, and print it."""
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        loader = Loader(args, Path(folder))
        stages = ", ".join(f"{budget} from layer {layer}" for layer, budget in loader.config.layers)
        print(
            f"{clock_of(loader.device)[0]} on {loader.device}, {torch.get_num_threads()} CPU threads, "
            f"{loader.loaded.model.dtype}, {args.rounds} rounds, torch {torch.__version__}",
            f"{args.batch_size} clips of {args.frames} frames, {args.new_tokens} tokens an answer; reduced: of a frame "
            f"{loader.config.visual_tokens} tokens, {stages or 'in all layers'}",
            sep="\n",
            end="\n\n",
            flush=True,
        )
        print(report(*measure(loader, args.rounds)))
