"""Attention received, in time and memory, against the dense tower of Qwen2.5-VL and against other ways to compute it.

    OMP_NUM_THREADS=1 python -m benchmarks.received --image-size 896x896 896x1792 1792x1792 --threads 1

These are 4096, 8192 and 16384 patches. Blocks have the real sizes and random weights. A windowed block, a block with
full attention and what is outside the blocks (patch embedding, merger) are timed apart, and the tower's time is worked
out: 28 times the first, 4 times the second, once the third. All parts take turns, round by round; ratios are medians of
ratios within one round.

Memory is the most that PyTorch's allocator held beyond weights and inputs: of the dense tower, of the same tower under
a reduction to a third of the tokens (scores, selection and merging), and of single calls. No block keeps anything for
the next one, so that three blocks have the peak of 32.
"""

from vscan.eval.arguments import Parser, add, positive, run_command
from vscan.tools.profile import image_size


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.received", description=__doc__.splitlines()[0])
    help_text = "in pixels; 896x896 has 4096 patches; default: 896x896 896x1792 1792x1792"
    sizes = [(896, 896), (896, 1792), (1792, 1792)]
    add(parser, "--image-size", type=image_size, nargs="+", default=sizes, help=help_text)
    add(parser, "--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    add(parser, "--device", default="cpu", help="cpu, cuda, cuda:1")
    add(parser, "--rounds", type=positive, default=3, help="how often all parts take turns")
    add(parser, "--threads", type=positive, help="threads on a CPU; one is timed in CPU time")
    args = parser.parse_args(argv)

    from .received_parts import run  # --help and wrong flags need no torch

    run(args)


if __name__ == "__main__":
    run_command(main)
