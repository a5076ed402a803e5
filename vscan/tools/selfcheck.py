"""Whether a reduction does what it should on a checkpoint of yours, with your libraries: the long form of the checks.

    python -m vscan.selfcheck --model-path DIR

Two questions about two drawn pictures go the way of the commands. Every line says "ok" or "FAILED", what was measured,
and its limit:

- self-test: a small copy of the text model gives in the decoder loop what it gives in transformers;
- keep all: a reduction that keeps all tokens gives the dense model's tokens and logits, bit for bit;
- oracle: a third of the tokens after the encoder, and of these in the middle layer, give the logits of the dense model
  in which dropped tokens are only hidden (`vscan.checks.oracle`), and are those that its attention ranks first;
- batch: both prompts in one batch are what each is alone;
- cache: it holds what the stages left, and takes that share of the dense model's bytes.

In half precision rounding moves logits and flips a few tokens, so that limits go by the dtype. The exit code is 0 if
all hold, 1 if one fails, 2 for bad input. `vscan.tools.selfcheck_model` has the checks themselves.
"""

import io
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from ..eval.arguments import Parser, add, positive
from ..io.load import Checkpoint, Loaded, checkpoint_of

# Unequal in length and in size: a batch is padded, and any-resolution families cut the pictures differently.
QUESTIONS = (
    {"text": "What is shown in this picture?", "size": (640, 300)},
    {"text": "How many circles are there?\nAnswer the question using a single word or phrase.", "size": (300, 420)},
)


def picture(question: dict) -> io.BytesIO:
    """A PNG file of a question's size: circles on coloured noise, for on flat ground tokens tie."""
    chance, file = random.Random(question["text"]), io.BytesIO()
    image = Image.frombytes("RGB", (24, 24), chance.randbytes(24 * 24 * 3)).resize(question["size"])
    for colour in ("red", "white", "blue"):
        x, y, side = chance.randrange(200), chance.randrange(200), chance.randrange(60, 120)
        ImageDraw.Draw(image).ellipse((x, y, x + side, y + side), fill=colour)
    image.save(file, "PNG")
    return file


def prepared(checkpoint: Checkpoint, options: dict) -> tuple[Loaded, list]:
    """Load a checkpoint, and prepare the questions for it."""
    loaded = checkpoint.load(**options)
    prepare = loaded.preparation(picture, "vicuna_v1")
    return loaded, [prepare(question) for question in QUESTIONS]


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible.

    Raises:
        SystemExit: with code 1, if a check fails.
    """
    parser = Parser(prog="python -m vscan.selfcheck")
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    kernels = ["sdpa", "eager", "flash_attention_2"]
    add(parser, "--attn-implementation", default=None, choices=kernels, help="default: what transformers chooses")
    add(parser, "--max_new_tokens", type=positive, default=16, help="tokens of an answer")
    args = parser.parse_args(argv)

    checkpoint = checkpoint_of(args.model_path)
    options = {"device": args.device, "dtype": args.dtype, "attn_implementation": args.attn_implementation}
    layer = checkpoint.fields("vscan").get("prune_layer") or checkpoint.num_layers // 2
    given = prepared(checkpoint, options)

    from .selfcheck_model import Subject, checks

    failed = number = 0
    for holds, line in checks(Subject(*given, layer, args.max_new_tokens)):
        print("ok    " if holds else "FAILED", line, flush=True)
        failed, number = failed + (not holds), number + 1
    name = Path(args.model_path).resolve().name
    print(f"{name}: {failed} of {number} checks FAILED" if failed else f"{name}: all {number} checks hold")
    if failed:
        sys.exit(1)
