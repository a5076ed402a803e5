"""How fast a reduced model is and how far from its best: dense, reduced and floor take turns in one run, in one table.

    python -m vscan.profile --model llava-1.5-7b --random-weights --layers 8 --dtype bfloat16 --average 192 128 64
    python -m vscan.profile --model video-llava-7b --random-weights --layers 8 --average 64
    python -m vscan.profile --model qwen2.5-vl-7b --random-weights --layers 2 --image-size 896x896 --average 0.222

The *floor* is the same decoder given the shortened prompt from the start, run of layers by run of layers, so that
selecting, dropping and book-keeping cost nothing. `bench`, `bench_video` and `bench_qwen` say what each row does;
`measure` and `report` in `bench_table` measure it and make the table.
"""

import os
from argparse import ArgumentTypeError, Namespace

from ..eval.arguments import Parser, add, budget, parse, positive
from ..io.load import checkpoint_of
from ..methods import METHODS

# The names of `MODELS` in `vscan.tools.bench`, `bench_video` and `bench_qwen`: --help and wrong flags need no torch.
VIDEO = ("video-llava-7b",)
LLAVA = ("llava-1.5-7b", "llava-1.5-13b", "llava-next-7b", "llava-next-13b")
QWEN = ("qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2.5-vl-32b")


def image_size(text: str) -> tuple[int, int]:
    """Width and height in pixels, written 1280x720."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ArgumentTypeError(f"expected width x height in pixels such as 1280x720, got {text!r}")
    return int(width), int(height)


def check(args: Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    name = args.model or args.model_path
    if (args.model_path is None) != (args.model is not None and args.random_weights):
        raise ValueError("expected either --model-path, or --model together with --random-weights")
    for flag in ("layers", "vision_layers") if args.model_path else ():
        if getattr(args, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')}: expected none beside --model-path, got {getattr(args, flag)}"
            )
    # What its files say, before torch is imported; views of Qwen2.5-VL vary in size.
    checkpoint = args.model_path and checkpoint_of(args.model_path)
    if checkpoint.num_tokens is None if checkpoint else args.model in QWEN:
        return
    sees_clips = getattr(checkpoint, "sees_clips", False) if checkpoint else args.model in VIDEO
    for flag in ("image_size", "vision_layers"):
        if getattr(args, flag):
            raise ValueError(f"--{flag.replace('_', '-')}: expected none beside {name}, got {getattr(args, flag)}")
    args.average = args.average or ([128, 64, 32] if sees_clips else [192, 128, 64])
    if not all(isinstance(average, int) for average in args.average):
        raise ValueError(f"--average: expected counts of tokens such as 192, got {args.average}")


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ImportError, ValueError: for bad input.
    """
    parser = Parser(prog="python -m vscan.profile", add_help=False)
    add(parser, "--model", choices=[*LLAVA, *VIDEO, *QWEN], help="a model of this size, with --random-weights")
    add(parser, "--random-weights", action="store_true", help="no checkpoint is read")
    add(parser, "--model-path", help="a checkpoint folder, instead of these two")
    add(parser, "--layers", type=positive, help="decoder layers of --model; default: all")
    help_text = "over all layers: tokens of a view (of a clip's frame); for Qwen2.5-VL shares; default: 192 128 64, of "
    help_text += "frames 128 64 32, or 0.333 0.222 0.111"
    add(parser, "--average", type=budget, nargs="+", help=help_text)
    add(parser, "--image-size", type=image_size, nargs="+", help="pictures of a Qwen2.5-VL prompt; default: 896x896")
    add(parser, "--vision-layers", type=positive, help="cut a Qwen2.5-VL tower to 8, 16 or 24 of its blocks")
    add(parser, "--method", default="vscan", choices=list(METHODS))
    add(parser, "--batch-size", type=positive, default=1, help="prompts at a time")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add(parser, "--attn-implementation", choices=["sdpa", "eager", "flash_attention_2"])
    add(parser, "--rounds", type=positive, default=7, help="how often all rows take turns")
    add(parser, "--new-tokens", type=positive, default=8, help="tokens decoded after each prompt")
    add(parser, "--threads", type=positive, help="threads on a CPU; one is timed in CPU time")
    args, hyper_parameters = parse(parser, argv)
    check(args)

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its start and stop otherwise
    from .bench_table import run

    run(args, hyper_parameters)
