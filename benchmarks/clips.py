"""Clips a second of the loader, dense and reduced, and the memory that a batch of them takes.

    OMP_NUM_THREADS=1 python -m benchmarks.clips --model-path DIR --threads 1

`DIR` is a Video-LLaVA of either format. Clips are drawn: MPEG-4 of the given size and number of frames. What a clip
takes is timed in three parts, reading its eight frames, making pixels of them, and answering; the loader's clips a
second are all three together, one after another, as with `--num-workers 0`. Dense and reduced take turns, round by
round; ratios are medians of ratios within one round. Memory is the most that PyTorch's allocator held while a batch was
answered, beyond weights and pixels.
"""

from vscan.eval.arguments import Parser, add, budget, positive, run_command


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.clips", description=__doc__.splitlines()[0])
    add(parser, "--model-path", required=True, help="checkpoint folder of a Video-LLaVA")
    add(parser, "--average", type=budget, default=64, help="tokens of a frame over the decoder's layers, or a share")
    add(parser, "--batch-size", type=positive, default=4, help="clips at a time")
    add(parser, "--new-tokens", type=positive, default=16, help="of an answer")
    add(parser, "--frames", type=positive, default=120, help="of a clip")
    add(parser, "--width", type=positive, default=320, help="of a clip, in pixels; it is three quarters as high")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add(parser, "--rounds", type=positive, default=5, help="how often dense and reduced take turns")
    add(parser, "--threads", type=positive, default=None, help="threads on a CPU; one is timed in CPU time")
    args = parser.parse_args(argv)

    from .clips_parts import run  # --help and wrong flags need no torch

    run(args)


if __name__ == "__main__":
    run_command(main)
