"""What the commands for clips share: flags under our names or the published ones, and which clips are there."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from llava.checkpoint import LlavaCheckpoint
from vscan.config import FRAME_CLS, GROUPS
from vscan.eval.arguments import add, add_generation_arguments, add_reduction_arguments, positive
from vscan.eval.guard import Parser
from vscan.eval.records import Part
from vscan.eval.video_questions import read_clips
from vscan.io.frames import ClipFolder, check_sees_clips
from vscan.io.ranks import Ranks

from .command import Command

TEMPLATE = "llava_v1"
MAX_NEW_TOKENS = 1024
BUDGETS = "Budgets are those of a frame, of which a clip has eight, with 256 tokens and [CLS] each."
MOST_NAMES = 20  # of missing clips, in the line that says so


def loader_parser(command: str) -> argparse.ArgumentParser:
    """The flags of LLaVA's loaders, and those of clips."""
    parser = Parser(prog=f"python -m llava.eval.{command}", epilog=BUDGETS, add_help=False)
    add(parser, "--question-file", required=True, help="questions, a JSON list of video_name, question, question_id")
    add(parser, "--truth-file", default=None, help="right answers, a JSON list of question_id and answer")
    add(parser, "--video-folder", required=True, help="folder of the clips, each named as its video_name")
    add(parser, "--answers-file", required=True, help="answers, one JSON object a line; continued where it stopped")
    add(parser, "--num-chunks", type=positive, default=1, help="cut the questions into this many chunks")
    return _with_the_rest(parser)


def published_parser(command: str) -> argparse.ArgumentParser:
    """The flags of Video-LLaVA's command, and those of LLaVA's loaders beside them."""
    parser = Parser(prog=f"python -m llava.eval.{command}", epilog=BUDGETS, add_help=False)
    questions_help = "questions, a JSON list of video_name, question, question_id"
    add(parser, "--gt_file_question", dest="question_file", required=True, help=questions_help)
    truth_help = "right answers, a JSON list of question_id and answer, in any order"
    add(parser, "--gt_file_answers", dest="truth_file", required=True, help=truth_help)
    folder_help = "folder of the clips, each named as its video_name"
    add(parser, "--video_dir", dest="video_folder", required=True, help=folder_help)
    add(parser, "--output_dir", required=True, help="folder of the answers; continued where they stopped")
    add(parser, "--output_name", required=True, help="of the file there, without .json: a JSON object a line")
    add(parser, "--num_chunks", type=positive, default=1, help="cut the questions into this many chunks")
    add(parser, "--cache_dir", default=None, help="does nothing: towers are read from inside the checkpoint or beside")
    add(parser, "--model_max_length", type=positive, default=2048, help="does nothing, as published")
    return _with_the_rest(parser)


def _with_the_rest(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    add(parser, "--chunk-idx", type=int, default=0, help="the chunk to answer, from 0")
    add_generation_arguments(parser, MAX_NEW_TOKENS, default=0.0)
    add_reduction_arguments(parser)
    parser.set_defaults(capture=False)  # a model that sees clips is not recorded
    cls_help = "the [CLS] token of a frame: kept beside the budget, or dropped; default: keep"
    add(parser, "--frame-cls", default=None, choices=list(FRAME_CLS), help=cls_help)
    group_help = "what a budget is for: a frame (view), or the whole clip (image), as many tokens as eight frames have"
    add(parser, "--group", default=None, choices=list(GROUPS), help=f"{group_help}; default: the method's own")
    add(parser, "--model-base", default=None, help="must be left out: merge an adapter into its base first")
    add(parser, "--conv-mode", default=TEMPLATE, help="conversation template")
    return parser


class VideoCommand(Command):
    """One command that asks about clips.

    Args:
        parser: its flags.
        argv: what was given for them.
        prefixes: what the name of a clip's file may have before the question's.

    Raises:
        FileNotFoundError, ValueError: for flags that do not fit each other, and for questions that are none.
    """

    def __init__(self, parser: argparse.ArgumentParser, argv: list[str], prefixes: tuple[str, ...] = ("",)):
        super().__init__(parser, argv)
        of_clips = {name: value for name in ("frame_cls", "group") if (value := getattr(self.args, name)) is not None}
        if of_clips and self.reduction is None:
            raise ValueError(f"expected a budget beside --{next(iter(of_clips)).replace('_', '-')}, got none")
        if of_clips:
            self.reduction = replace(self.reduction, **of_clips)
        self.clips = ClipFolder(self.args.video_folder, prefixes)
        self.all_questions = read_clips(self.args.question_file, self.args.truth_file)
        self.questions = self.chunk(self.all_questions)
        self.missing = self.clips.missing(self.questions)

    def answer_clips(self, row: Callable, leave_missing: bool = False) -> None:
        """Answer the questions, and say at the end which clips are missing.

        Args:
            row: from question, answer and model_id to a row of the answers file.
            leave_missing: a question whose clip is missing has no row, and is no error; also with `--on-error skip`.

        Raises:
            FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
        """
        leave_missing |= self.args.on_error == "skip"
        names = {question["video"] for question in self.questions}
        if not leave_missing:
            self.clips.check(self.questions)
        if names and len(self.missing) == len(names):  # of a chunk that may be; of all it is another folder
            everything = {question["video"] for question in self.all_questions}
            if len(self.clips.missing(self.all_questions)) == len(everything):
                self.clips.check(self.all_questions)
        ranks = self.answer(self.questions, self.clips, row, leave=bool(self.missing))
        if self.missing and ranks.rank == 0:
            number = sum(question["video"] in self.missing for question in self.questions)
            shown = [*list(self.missing)[:MOST_NAMES], *["..."] * (len(self.missing) > MOST_NAMES)]
            print(
                f"{number} of {len(self.questions)} questions have no row, for {len(self.missing)} of {len(names)} "
                f"clips are missing: {', '.join(shown)}",
                file=sys.stderr,
            )

    def check_kind(self, checkpoint: LlavaCheckpoint) -> None:
        """Raise ValueError for a checkpoint that sees no clips."""
        check_sees_clips(checkpoint)

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
        for number in todo:
            question = questions[number]
            if question["video"] in self.missing:
                place = find_image(question)
                part.skip(number, question["question_id"], f"expected a video file at {place}, found nothing there")
        todo = [number for number in todo if questions[number]["video"] not in self.missing]
        if todo:
            super()._answer(checkpoint, questions, find_image, row, ranks, todo, part)
