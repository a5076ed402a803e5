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

from ..config import prune_layer_of
from ..eval.arguments import Parser, add, positive
from ..io.checkpoint import check_config

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


def load_llava(folder: str, options: dict) -> tuple:
    """Load a LLaVA in either format: tokenizer, model, what answers, and the prepared questions."""
    from llava.eval.answering import Answering, Preparation, load_checked

    tokenizer, model, processor = load_checked(folder, **options)
    model.generation_config.max_length = None  # the checkpoint's own would be warned about
    prepare = Preparation.of(model, tokenizer, processor, picture, "vicuna_v1")
    return tokenizer, model, Answering, [prepare(question) for question in QUESTIONS]


def load_qwen(folder: str, options: dict) -> tuple:
    """The same of a Qwen2.5-VL."""
    from qwen.eval.answering import Answering, Preparation
    from qwen.images import pixel_budget
    from qwen.model.builder import load_pretrained_model

    from ..io.checkpoint import load_checked

    tokenizer, model, processor = load_checked(load_pretrained_model, folder, **options)
    budget = pixel_budget("model_vqa_loader", folder, None, None)
    prepare = Preparation(tokenizer, processor, model.config.image_token_id, picture, budget)
    return tokenizer, model, Answering, [prepare(question) for question in QUESTIONS]


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

    # llava and qwen import vscan; only what runs a command may import them the other way.
    if check_config(args.model_path).get("model_type") == "qwen2_5_vl":
        from qwen.model.check import check_checkpoint

        load = load_qwen
    else:
        from llava.model.check import check_checkpoint

        load = load_llava
    config = check_checkpoint(args.model_path)
    options = {"device": args.device, "dtype": args.dtype, "attn_implementation": args.attn_implementation}
    loaded = load(args.model_path, options)

    from .selfcheck_model import Subject, checks

    failed = number = 0
    for holds, line in checks(Subject(*loaded, prune_layer_of(config), args.max_new_tokens)):
        print("ok    " if holds else "FAILED", line, flush=True)
        failed, number = failed + (not holds), number + 1
    name = Path(args.model_path).resolve().name
    print(f"{name}: {failed} of {number} checks FAILED" if failed else f"{name}: all {number} checks hold")
    if failed:
        sys.exit(1)
