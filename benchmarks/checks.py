"""What the run-time checks cost a prompt and a decoded token, and what the self-test costs a process.

    OMP_NUM_THREADS=1 python -m benchmarks.checks

A picture and its question go through the shell's plain forward under a two-stage reduction, and tokens are decoded from
the cache that it returns: with the checks of `vscan.checks.guards` as they are, and with nothing in their place. Both
take turns, round by round, and begin in turn; ratios are medians of ratios within one round. What the tower makes of
the picture is remembered, so that it thins no ratio. Ratios wander by more than the checks take, so that these are
timed alone as well: every call of a check, one after another, beside the step that it belongs to.

The models are the embedded tiny LLaVA, and one of the width of a 7B with random weights and two decoder layers, in
which everything around the layers weighs sixteen times what it does in all 32.
"""

from vscan.eval.arguments import Parser, add, positive, run_command


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.checks", description=__doc__.splitlines()[0])
    add(parser, "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the wide model")
    add(parser, "--rounds", type=positive, default=30, help="how often both take turns")
    add(parser, "--new-tokens", type=positive, default=8, help="tokens that are decoded in a round")
    args = parser.parse_args(argv)

    from .checks_parts import run  # --help and wrong flags need no torch

    run(args)


if __name__ == "__main__":
    run_command(main)
