"""What the LLaVA commands share: flags in, checks, and a model that is loaded when there is a row to answer."""

import argparse
from collections.abc import Callable
from functools import partial

from llava.checkpoint import LlavaCheckpoint
from llava.conversation import get_conversation
from llava.model.check import find_local_tower
from llava.model.check_video import IMAGE, VIDEO, find_languagebind, is_video
from vscan.eval.arguments import (
    add,
    add_capture_argument,
    add_generation_arguments,
    add_question_arguments,
    add_reduction_arguments,
    generation,
    parse,
    reduction_config,
)
from vscan.eval.guard import Parser
from vscan.eval.questions import check_asked, check_folder, check_images, chunk
from vscan.eval.records import Part
from vscan.eval.run_record import reduction_record, run_record
from vscan.eval.runner import answer_file, run
from vscan.io.checkpoint import model_name
from vscan.io.images import ImageFolder
from vscan.io.ranks import Ranks


def question_parser(command: str, max_new_tokens: int, has_folder: bool = True) -> argparse.ArgumentParser:
    """The flags of a command that answers a question file; dense where they say nothing of a reduction."""
    parser = Parser(prog=f"python -m llava.eval.{command}", add_help=False)
    add_question_arguments(parser, has_folder)
    add_generation_arguments(parser, max_new_tokens)
    add_reduction_arguments(parser)
    add_capture_argument(parser)
    add(parser, "--model-base", default=None, help="must be left out: merge an adapter into its base first")
    add(parser, "--conv-mode", default="vicuna_v1", help="conversation template")
    return parser


class Command:
    """One command: its flags, its reduction, and what answers with them.

    Args:
        parser: its flags.
        argv: what was given for them.

    Raises:
        ValueError: for flags that do not fit each other.
    """

    def __init__(self, parser: argparse.ArgumentParser, argv: list[str]):
        self.args, hyper_parameters = parse(parser, argv)
        self.reduction = reduction_config(self.args, hyper_parameters)
        get_conversation(self.args.conv_mode)
        if self.args.model_base is not None:
            raise ValueError(
                f"model_base: expected None (merge the adapter into its base first), got {self.args.model_base!r}"
            )

    def chunk(self, rows: list) -> list:
        """The chunk of `rows`, all that the question file holds, that this command is to answer.

        Raises:
            ValueError: for no rows at all, or another chunk than there is.
        """
        check_asked(rows, self.args.question_file)
        return chunk(rows, self.args.num_chunks, self.args.chunk_idx)

    def answer_from_folder(self, questions: list[dict], row: Callable | None = None) -> None:
        """`answer`, with pictures that lie in `--image-folder`; they are looked for before a model is loaded."""
        args = self.args
        check_folder(args.image_folder) if args.on_error == "skip" else check_images(questions, args.image_folder)
        self.answer(questions, ImageFolder(args.image_folder), row)

    def answer(
        self, questions: list[dict], find_image: Callable, row: Callable | None = None, leave: bool = False
    ) -> Ranks:
        """Answer questions into `--answers-file`; one of several processes does its share.

        Args:
            questions: all of a file, or of a chunk of it.
            find_image: from a question to its picture's file or content.
            row: from question, answer and model_id to a row of the answers file; None is the published one.
            leave: some questions may have no row in the end, whatever `--on-error` says.

        Returns:
            The processes, of which this is one.

        Raises:
            FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
        """
        args = self.args
        checkpoint = LlavaCheckpoint(args.model_path)
        self.check_kind(checkpoint)
        if self.reduction is not None:
            self.reduction = checkpoint.settled(self.reduction)
        ranks = Ranks()
        answer = partial(self._answer, checkpoint, questions, find_image, row, ranks)
        skip = leave or args.on_error == "skip"
        answer_file(args.answers_file, self._record(checkpoint), questions, answer, ranks, skip)
        return ranks

    def check_kind(self, checkpoint: LlavaCheckpoint) -> None:
        """Raise ValueError for a checkpoint that cannot be asked such questions."""

    def _record(self, checkpoint: LlavaCheckpoint) -> dict:
        """What decides the answers, for the record beside them."""
        path, config = self.args.model_path, checkpoint.config
        towers = [find_local_tower(config["mm_vision_tower"], path)] if "mm_vision_tower" in config else []
        if is_video(config):
            towers = [find_languagebind(part, config, path) for part in (IMAGE, VIDEO)]
        return {
            **run_record(self.args, self.args.question_file, [path, *filter(None, towers)]),
            "reduction": reduction_record(self.reduction, checkpoint.fields(self.args.method)),
        }

    def _answer(
        self,
        checkpoint: LlavaCheckpoint,
        questions: list[dict],
        find_image: Callable,
        row: Callable | None,
        ranks: Ranks,
        todo: list[int],
        part: Part,
    ) -> None:
        """Load the model and answer the rows `todo` into `part`."""
        from vscan.api import apply_config

        args = self.args
        loaded = checkpoint.load(ranks.device(args.device), args.dtype, args.attn_implementation)
        applied = None
        if self.reduction is not None:
            applied = apply_config(loaded.model, self.reduction, loaded.tokenizer, capture=args.capture)
        answering = loaded.answering(applied, **generation(args))
        run(
            questions,
            todo,
            part,
            model_name(args.model_path),
            loaded.preparation(find_image, args.conv_mode, applied),
            answering,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            skip=args.on_error == "skip",
            show_progress=ranks.rank == 0,
            row=row,
            check=answering.check,
        )
