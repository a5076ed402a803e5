"""What the Qwen commands share: flags in, checks, and a model that is loaded when the first row needs it."""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from qwen.checkpoint import QwenCheckpoint
from qwen.images import pixel_budget
from vscan.eval.arguments import (
    add_generation_arguments,
    add_question_arguments,
    generation,
    parse,
)
from vscan.eval.guard import Parser
from vscan.eval.questions import check_asked, chunk
from vscan.eval.records import Part
from vscan.eval.run_record import reduction_record, run_record
from vscan.eval.runner import answer_file, run
from vscan.io.checkpoint import model_name
from vscan.io.ranks import Ranks

from .arguments import HYPER_PARAMETERS, add_pixel_arguments, add_reduction_arguments, reduction_config

FindImage = Callable[[dict], str | io.BytesIO | None]


def question_parser(command: str, max_new_tokens: int, has_folder: bool = True) -> argparse.ArgumentParser:
    """The flags of a command that answers a question file; dense where they say nothing of a reduction."""
    parser = Parser(prog=f"python -m qwen.eval.{command}", add_help=False)
    add_question_arguments(parser, has_folder)
    add_generation_arguments(parser, max_new_tokens)
    add_reduction_arguments(parser, layers="[]", ratios="[]", ratio=1.0)
    add_pixel_arguments(parser)
    return parser


class Command:
    """One command: its flags, checked against the checkpoint; its processes; its model, once there is a row to answer.

    Args:
        name: a name in `qwen.images.COMMANDS`.
        parser: its flags.
        argv: what was given for them.

    Raises:
        ValueError: for flags that do not fit each other.
    """

    def __init__(self, name: str, parser: argparse.ArgumentParser, argv: list[str]):
        self.name = name
        self.args, hyper_parameters = parse(parser, argv, HYPER_PARAMETERS)
        self.reduction = reduction_config(self.args, hyper_parameters)
        self.budget = self._checkpoint = self._loaded = None

    @property
    def skips(self) -> bool:
        """Whether a question that cannot be answered is left out rather than the end."""
        return self.args.on_error == "skip"

    def check_model(self) -> None:
        """Check the checkpoint, and the flags against it; settles the pixel budget.

        Raises:
            FileNotFoundError, ValueError: for a checkpoint that is incomplete, or a flag that does not fit it.
        """
        self._checkpoint = QwenCheckpoint(self.args.model_path)
        if self.reduction is not None:
            self.reduction = self._checkpoint.settled(self.reduction)
        self.budget = pixel_budget(self.name, self.args.model_path, self.args.min_pixels, self.args.max_pixels)

    def record(self, question_file: str | Path) -> dict:
        """What decides the answers to a file's questions, for the record beside them."""
        of_model = dict(HYPER_PARAMETERS.get(self.args.method, {}))
        full = self._checkpoint.config["vision_config"].get("fullatt_block_indexes")
        if "local_layer" in of_model and full:
            of_model["local_layer"] = full[0]
        of_model |= self._checkpoint.fields(self.args.method)
        return {
            **run_record(self.args, question_file, [self.args.model_path]),
            **dict(zip(("min_pixels", "max_pixels"), self.budget, strict=True)),
            "reduction": reduction_record(self.reduction, of_model),
        }

    def chunk(self, rows: list) -> list:
        """The chunk of `rows`, all that the question file holds, that this command is to answer.

        Raises:
            ValueError: for no rows at all, or another chunk than there is.
        """
        check_asked(rows, self.args.question_file)
        return chunk(rows, self.args.num_chunks, self.args.chunk_idx)

    def answer(
        self,
        questions: list[dict],
        find_image: FindImage,
        row: Callable | None,
        ranks: Ranks,
        todo: list[int],
        part: Part,
    ) -> None:
        """Answer some questions; loads the model the first time.

        Args:
            questions: all of a file.
            find_image: from a question to its picture's file or content.
            row: from question, answer and model_id to a row of the answers file; None is the published one.
            ranks: the processes, of which this is one.
            todo: the row numbers of the questions to answer.
            part: where answers go.

        Raises:
            FileNotFoundError, ValueError: for a checkpoint that does not load, or a picture that is broken.
        """
        loaded, answering = self._load(ranks)
        run(
            questions,
            todo,
            part,
            model_name(self.args.model_path),
            loaded.prepared_within(self.budget, find_image),
            answering,
            batch_size=self.args.batch_size,
            num_workers=self.args.num_workers,
            skip=self.skips,
            show_progress=ranks.rank == 0,
            row=row,
            check=answering.check,
        )

    def _load(self, ranks: Ranks) -> tuple:
        if self._loaded is None:
            from vscan.api import apply_config

            args = self.args
            loaded = self._checkpoint.load(ranks.device(args.device), args.dtype, args.attn_implementation)
            reduction = None
            if self.reduction is not None:
                reduction = apply_config(loaded.model, self.reduction, loaded.tokenizer, capture=args.capture)
            self._loaded = loaded, loaded.answering(reduction, **generation(args))
        return self._loaded


def answer_questions(command: Command, questions: list[dict], find_image: FindImage, row: Callable | None = None):
    """Answer a question file that has been checked, into `--answers-file`; one of several processes does its share.

    Args:
        command: with its flags.
        questions: all of them.
        find_image: from a question to its picture.
        row: from question, answer and model_id to a row of the answers file; None is the published one.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    command.check_model()
    ranks = Ranks()
    answer_file(
        command.args.answers_file,
        command.record(command.args.question_file),
        questions,
        lambda todo, part: command.answer(questions, find_image, row, ranks, todo, part),
        ranks,
        command.skips,
    )
