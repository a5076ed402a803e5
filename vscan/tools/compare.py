"""Dense, and every method at every budget, on questions whose answers are known: one table and one picture.

    python -m vscan.compare --model-path DIR --data DIR --methods vscan,vispruner --tokens 192,128,64 --output DIR

The data folder holds images/ and questions.jsonl, a question a line:

    {"question_id": 0, "image": "0.png", "text": "Is there a star?", "category": "existence", "answer": "yes"}

`answer` is the right words, a list of words that are all right, or a box [x1, y1, x2, y2] relative to the picture. "64
tokens" is the average over the decoder's layers, per view: VScan has its two stages, other methods keep 64 after the
vision encoder. Accuracies are in percent; categories count alike in the mean and in its difference to dense, however
many questions each has. `vscan.eval.table` says how the difference gets its interval.

A picture is encoded once for all cells, and the seconds that this took are counted in each.

The output folder gets table.md, table.csv, accuracy.png and a cell's answers file each. The same command goes on where
it was stopped; with more methods or budgets it adds them. In Python: `compare` answers, `report` makes the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..config import ReductionConfig, prune_layer_of
from ..eval.arguments import Parser, add, positive
from ..eval.questions import check_images, read_questions
from ..eval.scoring import check_answers
from ..flops import vscan_schedule

if TYPE_CHECKING:  # --help and wrong flags need no numpy
    from ..eval.cells import Cell, Row
    from ..eval.records import AnswersFile

METHODS = "vscan,vispruner,fastervlm,random,downsample"
TOKENS = "192,128,64"
CONV_MODE, MAX_NEW_TOKENS, BATCH_SIZE = "vicuna_v1", 32, 8


def cell_at(method: str, tokens: int, num_layers: int, prune_layer: int | None = None) -> Cell:
    """A method at an average of `tokens` visual tokens over the decoder's `num_layers` layers.

    Args:
        prune_layer: of VScan; None is the middle.

    Raises:
        ValueError: for a method that is none, or an average that it cannot meet.
    """
    from ..eval.cells import Cell

    visual_tokens, layers = vscan_schedule(tokens, num_layers, prune_layer) if method == "vscan" else (tokens, ())
    return Cell(method, ReductionConfig(method, visual_tokens, layers), tokens)


def compare(
    load: Callable[[], tuple],
    cells: Sequence[Cell],
    questions: list[dict],
    image_folder: str | Path,
    output: str | Path,
    model_id: str,
    conv_mode: str = CONV_MODE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    **record,
) -> list[Row]:
    """Let a LLaVA answer questions in every cell, greedily. Of what `output` holds already nothing is done again.

    Args:
        load: gives (tokenizer, model, image processor, ...) as `load_pretrained_model` does; called only where answers
            are missing. For a model at hand: `lambda: (tokenizer, model, image_processor)`.
        cells: in the order of the table; one without a reduction is the dense model.
        questions: with `answer`, and `category` where there are several, as in a question file.
        image_folder: what their images are relative to.
        output: folder for the answers files.
        model_id: what answers call the model; with another one `output` is not continued. Nor with other weights, if
            `weights=weights_of(folder)` is among the record.
        conv_mode: conversation template.
        max_new_tokens, batch_size, num_workers: of an answer; prompts at a time, where questions about one image go
            together and encode it once; processes that prepare images.
        **record: other plain values that must be the same for `output` to be continued.

    Returns:
        One row a cell, in their order.

    Raises:
        ValueError: as `evaluate` does, and for a reduction that does not fit the model: before the first answer.
    """
    from ..eval.cells import evaluate

    loaded = []

    def answer(cell: Cell, todo: list[int], answers: AnswersFile) -> None:
        # llava imports vscan; only what runs a model may import it the other way.
        from llava.eval.answering import Answering, Preparation

        from ..api import apply_config
        from ..eval.runner import Answer, run
        from ..models.towers import TowerMemory

        is_first = not loaded
        if is_first:
            loaded.extend(load()[:3])
            loaded[1].generation_config.max_length = None  # the checkpoint's own would be warned about at every call
            row_layers = []
            for other in cells:
                if other.reduction is not None:
                    tried = apply_config(loaded[1], other.reduction)
                    row_layers += tried.method.cls_layers
                    tried.remove()
            loaded.append(TowerMemory(tuple(row_layers)))
        tokenizer, model, image_processor, memory = loaded
        reduction = None if cell.reduction is None else apply_config(model, cell.reduction)
        try:
            print(f"{cell.name}: {len(todo)} of {len(questions)} questions to answer", file=sys.stderr)
            prepare = Preparation.of(
                model, tokenizer, image_processor, str(image_folder), conv_mode, reduction=reduction
            )
            answering = Answering(
                tokenizer,
                model,
                reduction,
                do_sample=False,
                temperature=None,
                top_p=None,
                max_new_tokens=max_new_tokens,
            )
            if is_first:  # what the first call of a process sets up is no part of a cell's seconds
                answering([prepare(questions[todo[0]])])

            def remembering(prompts: list) -> list[Answer]:
                memory.seconds = 0.0
                with memory:
                    replies = answering(prompts)
                shared = {"shared_seconds": round(memory.seconds / len(prompts), 6)}
                return [replace(reply, stats={**reply.stats, **shared}) for reply in replies]

            run(
                questions,
                todo,
                answers,
                model_id,
                prepare,
                remembering,
                batch_size=batch_size,
                num_workers=num_workers,
                together="image",
                check=answering.check,
            )
        finally:
            if reduction is not None:
                reduction.remove()

    record |= {"model_id": model_id, "image_folder": str(Path(image_folder).resolve()), "conv_mode": conv_mode}
    record |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return evaluate(cells, questions, output, record, answer)


def report(rows: Sequence[Row], questions: list[dict], output: str | Path) -> str:
    """Write table.md, table.csv and accuracy.png into the folder `output`; returns the first."""
    from ..eval.chart import plot
    from ..eval.table import WEIGHTS, markdown, summarise, write_csv

    summaries = summarise(rows, questions)
    text = f"{markdown(summaries)}\n{WEIGHTS}\n"
    (Path(output) / "table.md").write_text(text, encoding="utf-8")
    write_csv(summaries, Path(output) / "table.csv")
    plot(summaries, Path(output) / "accuracy.png")
    return text


def _cells(methods: str, budgets: str, config: dict, model_path: str) -> list[Cell]:
    """Dense, and all that the command line asks for, checked against the checkpoint's config."""
    from llava.model.check import check_reduction

    from ..eval.cells import Cell

    num_layers = (config.get("text_config") or config).get("num_hidden_layers", 32)
    cells = [Cell("dense")]
    for method in methods.split(","):
        for text in budgets.split(","):
            if not text.strip().isdecimal():
                raise ValueError(f"--tokens: expected counts such as {TOKENS!r}, got {budgets!r}")
            try:
                cells.append(cell_at(method.strip(), int(text), num_layers, prune_layer_of(config)))
                check_reduction(cells[-1].reduction, config, model_path)
            except ValueError as error:
                raise ValueError(f"{method.strip()} at {text.strip()} tokens: {error}") from error
    return cells


def weights_of(folder: str | Path) -> list:
    """Names, sizes and times of a checkpoint's weight files: a model that was trained on since is another model."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in (".safetensors", ".bin"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible."""
    parser = Parser(prog="python -m vscan.compare")
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--data", type=Path, default=None, help="folder with questions.jsonl and images/")
    add(parser, "--question-file", default=None, help="in place of --data, with --image-folder")
    add(parser, "--image-folder", default=None, help="folder that the questions' images are relative to")
    add(parser, "--methods", default=METHODS, help=f"with commas between them; default: {METHODS}")
    add(parser, "--tokens", default=TOKENS, help=f"averages over the decoder's layers; default: {TOKENS}")
    add(parser, "--output", default=None, help="folder for the table, the picture and the answers; default: print only")
    add(parser, "--limit", type=positive, default=None, help="ask the first questions only")
    add(parser, "--conv-mode", default=CONV_MODE, help="conversation template")
    add(parser, "--max-new-tokens", type=positive, default=MAX_NEW_TOKENS)
    batch_help = f"prompts at a time; questions about one image go together and encode it once; default: {BATCH_SIZE}"
    add(parser, "--batch-size", type=positive, default=BATCH_SIZE, help=batch_help)
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    args = parser.parse_args(argv)

    # llava imports vscan; only what runs a command may import it the other way.
    from llava.conversation import get_conversation
    from llava.model.check import check_checkpoint

    files = (args.question_file, args.image_folder)
    if (None in files) if args.data is None else files != (None, None):
        raise ValueError("expected --data, or --question-file and --image-folder, and not both")
    question_file, image_folder = files if args.data is None else (args.data / "questions.jsonl", args.data / "images")
    questions = read_questions(question_file)[: args.limit]
    check_answers(questions)
    check_images(questions, image_folder)
    get_conversation(args.conv_mode)
    config = check_checkpoint(args.model_path)
    cells = _cells(args.methods, args.tokens, config, args.model_path)

    def load() -> tuple:
        from llava.eval.answering import load_checked

        return load_checked(args.model_path, args.device, args.dtype)

    with TemporaryDirectory() as scratch:
        output = args.output or scratch
        rows = compare(
            load,
            cells,
            questions,
            image_folder,
            output,
            Path(args.model_path).resolve().name,
            conv_mode=args.conv_mode,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            model_path=str(Path(args.model_path).resolve()),
            weights=weights_of(args.model_path),
            dtype=args.dtype,
            device=args.device,
        )
        print("\n" + report(rows, questions, output))
    if args.output:
        print(f"table.md, table.csv, accuracy.png and the answers lie in {args.output}")
