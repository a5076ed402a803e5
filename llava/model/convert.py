"""A LLaVA checkpoint in the original format becomes one that stock transformers loads.

    python -m llava.model.convert SRC DST

DST then serves `AutoModelForImageTextToText`, `AutoProcessor` and every command here, with the same answers. Tensors
are copied one by one in the dtype they are stored in; at most one shard of DST is in memory. What is added:

- the token "<image>" behind the vocabulary, which grows to a multiple of 64 rows. New rows are the mean of the others:
  their logit is the mean of the real logits, so no new token is ever the likeliest; generation_config.json also
  suppresses them, for beams and sampling;
- of Video-LLaVA "<video>" and "<pad>" as well, which stand for all tokens of a clip and for none; stock models have no
  place for its attention over time, so that it is converted with `--drop-temporal` alone;
- a processor that pads images to squares (LLaVA-1.5, where the checkpoint does) or cuts crops (LLaVA-NeXT), and the
  chat template of vicuna_v1.
"""

from vscan.eval.arguments import Parser, add, run_command


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = Parser(prog="python -m llava.model.convert", description=__doc__.splitlines()[0])
    parser.add_argument("src", metavar="SRC", help="checkpoint folder in the original format")
    add(
        parser,
        "--drop-temporal",
        action="store_true",
        help="of Video-LLaVA: leave out the attention over time, as the published conversion does",
    )
    parser.add_argument("dst", metavar="DST", help="folder to write: empty, or not there yet")
    args = parser.parse_args(argv)

    from .conversion import convert  # --help and wrong flags need no torch

    convert(args.src, args.dst, drop_temporal=args.drop_temporal)
    print(f"{args.dst}: done")


if __name__ == "__main__":
    run_command(main)
