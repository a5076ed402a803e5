"""Dense, and every method at every budget, on questions whose answers are known: one table and one picture.

    python -m vscan.compare --model-path DIR --data DIR --methods vscan,vispruner --tokens 192,128,64 --output DIR

The data folder holds images/ and questions.jsonl, a question a line:

    {"question_id": 0, "image": "0.png", "text": "Is there a star?", "category": "existence", "answer": "yes"}

`answer` is the right words, a list of words that are all right, or a box [x1, y1, x2, y2] relative to the picture;
where no question has one, right is what the dense model says. "64 tokens" is the average over the decoder's layers, per
view: every method has its own way there (`Method.schedule`), and "not reachable" stands for one that has none. For
models whose pictures vary in size it is a share, such as 0.111. Accuracies are in percent; categories count alike in
the mean and in its difference to dense, however many questions each has. `vscan.eval.table` says how the difference
gets its interval.

Questions about clips are a list, `--question-file test_q.json --video-folder DIR`, of {video_name, question,
question_id}; right answers, where there are some, another one, `--truth-file test_a.json`, of {answer, question_id}. A
data folder may hold test_q.json, test_a.json and videos/ as well.

A CLIP tower encodes a picture once for all reduced cells, and the seconds that this took are counted in each.

The output folder gets table.md, table.csv, accuracy.png and a cell's answers file each. The same command goes on where
it was stopped; with more methods or budgets it adds them. In Python: `compare` answers, `report` makes the table.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..config import Budget, ReductionConfig
from ..eval.arguments import Parser, add, add_capture_argument, budget, positive
from ..eval.questions import check_images, read_questions
from ..eval.scoring import check_answers
from ..eval.video_questions import read_clips
from ..io.frames import PREFIXES, ClipFolder, check_sees_clips
from ..io.load import Checkpoint, at_hand, checkpoint_of
from ..methods import make_method

if TYPE_CHECKING:  # --help and wrong flags need no numpy
    from ..eval.cells import Cell, Row
    from ..eval.records import AnswersFile

METHODS = "vscan,vispruner,fastervlm,random,downsample"
TOKENS, SHARES = "192,128,64", "0.333,0.222,0.111"
CONV_MODE, MAX_NEW_TOKENS, BATCH_SIZE = "vicuna_v1", 32, 8
CLIP_CONV_MODE = "llava_v1"
GREEDY = {"do_sample": False, "temperature": None, "top_p": None}


def cell_at(
    method: str, average: Budget, num_layers: int, num_tokens: int | None, fields: Mapping[str, Any] | None = None
) -> Cell:
    """A method at an average of visual tokens over the decoder's layers, by its own schedule.

    Args:
        average: a count of a view's tokens, or a share of them.
        num_layers: of the decoder.
        num_tokens: of a view; None where views vary in size.
        fields: the method's hyper-parameters that differ from its defaults, as a checkpoint may have them.

    Raises:
        ValueError: for a method that is none, or an average that is none.
    """
    from ..config import Unreachable
    from ..eval.cells import Cell
    from ..plan import scheduled

    asked = ReductionConfig(method, average=average)
    try:
        config = scheduled(asked, make_method(method, fields or {}), num_layers, num_tokens)
    except Unreachable as error:
        return Cell(method, asked, average, error.least)
    return Cell(method, config, average)


def compare(
    load: Callable[[], tuple],
    cells: Sequence[Cell],
    questions: list[dict],
    image_folder: str | Path | ClipFolder,
    output: str | Path,
    model_id: str,
    conv_mode: str = CONV_MODE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    capture: bool = False,
    **record,
) -> list[Row]:
    """Let a model answer questions in every cell, greedily. Of what `output` holds already nothing is done again.

    Args:
        load: gives (tokenizer, model, image processor, ...) as `vscan.io.load` does; called only where answers are
            missing. For a model at hand: `lambda: (tokenizer, model, image_processor)`.
        cells: in the order of the table; one without a reduction is the dense model.
        questions: with `answer`, and `category` where there are several, as in a question file.
        image_folder: what their images are relative to; for questions about clips where these lie.
        output: folder for the answers files.
        model_id: what answers call the model; with another one `output` is not continued. Nor with other weights, if
            `weights=weights_of(folder)` is among the record.
        conv_mode: conversation template, where the checkpoint has none itself.
        max_new_tokens, batch_size, num_workers: of an answer; prompts at a time, where questions about one image go
            together and encode it once; processes that prepare images.
        capture: run reduced models as recorded graphs; the tower, which is remembered across cells, is none of it.
        **record: other plain values that must be the same for `output` to be continued.

    Returns:
        One row a cell, in their order.

    Raises:
        ValueError: as `evaluate` does, and for a reduction that does not fit the model: before the first answer.
    """
    from ..eval.cells import evaluate

    setup, of_clips = [], isinstance(image_folder, ClipFolder)

    def answer(cell: Cell, todo: list[int], answers: AnswersFile) -> None:
        from ..api import apply_config
        from ..eval.runner import Answer, run

        is_first = not setup
        if is_first:
            loaded = at_hand(*load()[:3])
            setup.extend((loaded, _memory_for(loaded, cells)))
        loaded, memory = setup
        reduction = None
        if cell.reduction is not None:
            reduction = apply_config(loaded.model, cell.reduction, loaded.tokenizer, capture=capture)
        try:
            print(f"{cell.name}: {len(todo)} of {len(questions)} questions to answer", file=sys.stderr)
            prepare = loaded.preparation(image_folder if of_clips else str(image_folder), conv_mode, reduction)
            answering = loaded.answering(reduction, **GREEDY, max_new_tokens=max_new_tokens)
            if is_first:  # what the first call of a process sets up is no part of a cell's seconds
                answering([prepare(questions[todo[0]])])
            if reduction is not None:
                reduction.tower_memory = memory

            def remembering(prompts: list) -> list[Answer]:
                memory.seconds = 0.0
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
                together="video" if of_clips else "image",
                check=answering.check,
            )
        finally:
            if reduction is not None:
                reduction.remove()

    place = ("video_folder", image_folder.folder) if of_clips else ("image_folder", image_folder)
    record |= {"model_id": model_id, place[0]: str(Path(place[1]).resolve()), "conv_mode": conv_mode}
    record |= {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    return evaluate(cells, questions, output, record, answer)


def _memory_for(loaded, cells: Sequence[Cell]):
    """What the tower makes of pictures in all cells; ValueError for a reduction that does not fit the model."""
    from ..api import apply_config
    from ..models.towers import TowerMemory

    layers = []
    for cell in cells:
        if cell.reduction is not None and cell.least is None:
            tried = apply_config(loaded.model, cell.reduction, loaded.tokenizer)
            layers += tried.method.needs.rows
            tried.remove()
    return TowerMemory(tuple(layers))


def report(rows: Sequence[Row], questions: list[dict], output: str | Path) -> str:
    """Write table.md, table.csv and accuracy.png into the folder `output`; returns the first."""
    from ..eval.chart import plot
    from ..eval.table import SAME, WEIGHTS, markdown, summarise, write_csv

    summaries = summarise(rows, questions)
    notes = [WEIGHTS] if "answer" in questions[0] else [SAME, WEIGHTS]
    text = markdown(summaries) + "".join(f"\n{note}\n" for note in notes)
    (Path(output) / "table.md").write_text(text, encoding="utf-8")
    write_csv(summaries, Path(output) / "table.csv")
    plot(summaries, Path(output) / "accuracy.png")
    return text


def _cells(methods: str, budgets: str | None, checkpoint: Checkpoint) -> list[Cell]:
    """Dense, and all that the command line asks for, checked against the checkpoint's files."""
    from ..eval.cells import Cell

    kind, expected, usual = (int, "counts", TOKENS) if checkpoint.num_tokens else (float, "shares", SHARES)
    cells = [Cell("dense")]
    for method in map(str.strip, methods.split(",")):
        for text in map(str.strip, (budgets or usual).split(",")):
            try:
                average = budget(text)
            except ArgumentTypeError:
                average = None
            if not isinstance(average, kind):
                raise ValueError(f"--tokens: expected {expected} such as {usual!r}, got {budgets!r}")
            try:
                fields = checkpoint.fields(method)
                cells.append(cell_at(method, average, checkpoint.num_layers, checkpoint.num_tokens, fields))
                checkpoint.check_reduction(cells[-1].reduction)
            except ValueError as error:
                raise ValueError(f"{method} at {text} tokens: {error}") from error
    return cells


def weights_of(folder: str | Path) -> list:
    """Names, sizes and times of a checkpoint's weight files: a model that was trained on since is another model."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in (".safetensors", ".bin"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _questions(args) -> tuple[list[dict], str | Path | ClipFolder]:
    """The questions that the flags name, checked, and where their pictures or clips lie.

    Raises:
        FileNotFoundError, ValueError: for flags that do not fit each other, and for what is missing or none.
    """
    given = [name for name in ("question_file", "image_folder", "video_folder", "truth_file") if vars(args)[name]]
    shapes = (["question_file", "image_folder"], ["question_file", "video_folder"])
    shapes += ([*shapes[1], "truth_file"],)
    if given not in ([[]] if args.data is not None else shapes):
        raise ValueError(
            "expected --data, or --question-file and --image-folder (of clips --video-folder, with or without "
            "--truth-file), and not both"
        )
    question_file, video_folder, truth_file = args.question_file, args.video_folder, args.truth_file
    if args.data is not None and (args.data / "test_q.json").is_file():
        question_file, video_folder = args.data / "test_q.json", args.data / "videos"
        truth_file = args.data / "test_a.json" if (args.data / "test_a.json").is_file() else None
    if video_folder is not None:
        questions, clips = read_clips(question_file, truth_file)[: args.limit], ClipFolder(str(video_folder), PREFIXES)
        check_answers(questions)
        clips.check(questions)
        return questions, clips
    images = (args.data / "images") if args.data is not None else args.image_folder
    questions = read_questions((args.data / "questions.jsonl") if args.data is not None else question_file)
    check_answers(questions[: args.limit])
    check_images(questions[: args.limit], images)
    return questions[: args.limit], images


def main(argv: list[str]) -> None:
    """Run the command; OSError or ValueError for bad input, before the model is loaded where that is possible."""
    parser = Parser(prog="python -m vscan.compare")
    add(parser, "--model-path", required=True, help="checkpoint folder")
    add(parser, "--data", type=Path, default=None, help="folder with questions.jsonl and images/")
    add(parser, "--question-file", default=None, help="in place of --data, with --image-folder")
    add(parser, "--image-folder", default=None, help="folder that the questions' images are relative to")
    add(parser, "--video-folder", default=None, help="in its place: folder of the clips that the file is about")
    add(parser, "--truth-file", default=None, help="right answers to questions about clips")
    add(parser, "--methods", default=METHODS, help=f"with commas between them; default: {METHODS}")
    tokens_help = f"averages over the decoder's layers; default: {TOKENS}, or {SHARES} where pictures vary in size"
    add(parser, "--tokens", default=None, help=tokens_help)
    add(parser, "--output", default=None, help="folder for the table, the picture and the answers; default: print only")
    add(parser, "--limit", type=positive, default=None, help="ask the first questions only")
    template_help = f"conversation template of a LLaVA; default: {CONV_MODE}, or {CLIP_CONV_MODE} for clips"
    add(parser, "--conv-mode", default=None, help=template_help)
    add(parser, "--max-new-tokens", type=positive, default=MAX_NEW_TOKENS)
    batch_help = f"prompts at a time; questions about one image go together and encode it once; default: {BATCH_SIZE}"
    add(parser, "--batch-size", type=positive, default=BATCH_SIZE, help=batch_help)
    add(parser, "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add(parser, "--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    add_capture_argument(parser)
    args = parser.parse_args(argv)

    questions, folder = _questions(args)
    of_clips = isinstance(folder, ClipFolder)
    conv_mode = args.conv_mode or (CLIP_CONV_MODE if of_clips else CONV_MODE)
    checkpoint = checkpoint_of(args.model_path)
    checkpoint.check_template(conv_mode)
    if of_clips:
        check_sees_clips(checkpoint)
    cells = _cells(args.methods, args.tokens, checkpoint)

    with TemporaryDirectory() as scratch:
        output = args.output or scratch
        rows = compare(
            lambda: checkpoint.load(args.device, args.dtype),
            cells,
            questions,
            folder,
            output,
            Path(args.model_path).resolve().name,
            conv_mode=conv_mode,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            capture=args.capture,
            model_path=str(Path(args.model_path).resolve()),
            weights=weights_of(args.model_path),
            dtype=args.dtype,
            device=args.device,
        )
        print("\n" + report(rows, questions, output))
    if args.output:
        print(f"table.md, table.csv, accuracy.png and the answers lie in {args.output}")
