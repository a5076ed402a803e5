"""Locate what expressions name with a Qwen2.5-VL, dense or reduced: RefCOCO, RefCOCO+ and RefCOCOg.

    torchrun --nproc_per_node=8 -m qwen.eval.test_refcoco --model-path DIR --data-root DIR --image-root DIR

`--data-root` holds VLM-R1's files (refcoco_val.json, ...). The output folder gets for each split the answers
(`refcoco_val.jsonl`), every row with its box (`refcoco_val.json`), and `scores.json` for all. The same command goes on
where a run stopped. Several nodes (torchrun's --nnodes and --rdzv_endpoint) need an output folder that all of them see.
"""

import argparse
import json
from pathlib import Path

from vscan.eval.arguments import add, add_generation_arguments, run_command
from vscan.eval.guard import Parser
from vscan.eval.questions import check_folder, check_images
from vscan.eval.records import AnswersFile, write_whole
from vscan.eval.refcoco import SPLITS, judge, read_split, summarise
from vscan.eval.runner import answer_file
from vscan.io.checkpoint import model_name
from vscan.io.images import ImageFolder
from vscan.io.ranks import Ranks

from .arguments import add_pixel_arguments, add_reduction_arguments
from .command import Command


def make_parser() -> argparse.ArgumentParser:
    """The flags; budgets default to the published ones, [14], [0.67] and 0.6."""
    parser = Parser(prog="python -m qwen.eval.test_refcoco", add_help=False)
    add(parser, "--data-root", required=True, help="folder with the splits' files, such as refcoco_val.json")
    add(parser, "--image-root", required=True, help="folder that their images are relative to")
    add(parser, "--datasets", nargs="+", default=list(SPLITS), choices=SPLITS, metavar="SPLIT", help="default: all")
    add(parser, "--output-dir", default=None, help="for answers and scores; default: answers/refcoco/<model name>")
    add_generation_arguments(parser, max_new_tokens=512, default=0.0)
    add_reduction_arguments(parser, layers="[14]", ratios="[0.67]", ratio=0.6)
    add_pixel_arguments(parser)
    return parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    command = Command("test_refcoco", make_parser(), argv)
    args = command.args
    splits = {name: read_split(args.data_root, name) for name in args.datasets}
    questions = [question for split in splits.values() for question in split]
    check_folder(args.image_root) if command.skips else check_images(questions, args.image_root)
    command.check_model()
    output = Path(args.output_dir or Path("answers") / "refcoco" / model_name(args.model_path))
    for name in splits:  # all of them now: the last one's turn may come hours later
        AnswersFile.check(output / f"{name}.jsonl", _record(command, name))

    ranks = Ranks(use_nccl=args.device in (None, "cuda"))
    scores, everything = {}, []
    for name, split in splits.items():
        rows = _answer(command, output, name, split, ranks)
        if rows is not None:
            scores[name] = summarise(rows, len(split))
            everything += rows
            _write(output / f"{name}.json", {**scores[name], "results": rows})
            print(line(name, scores[name]))
    if ranks.rank == 0:
        scores["all"] = summarise(everything, len(questions))
        _write(output / "scores.json", scores)
        print(line("all", scores["all"]))


def _record(command: Command, name: str) -> dict:
    return {**command.record(Path(command.args.data_root) / f"{name}.json"), "split": name}


def _answer(command: Command, output: Path, name: str, split: list[dict], ranks: Ranks) -> list[dict] | None:
    """Answer what a split lacks; returns its judged rows for rank 0, None for others."""
    find_image = ImageFolder(command.args.image_root)
    answers = answer_file(
        output / f"{name}.jsonl",
        _record(command, name),
        split,
        lambda todo, part: command.answer(split, find_image, None, ranks, todo, part),
        ranks,
        command.skips,
    )
    if answers is None:
        return None
    rows = _judge(answers, split)
    answers.close()
    return rows


def _judge(answers: AnswersFile, split: list[dict]) -> list[dict]:
    """The judged rows of an answers file.

    Raises:
        ValueError: for a row whose stats a disk has lost: where its box lies cannot be told.
    """
    rows = []
    for row, answer, stats in answers.rows():
        resized = json.loads(stats).get("resized")
        if not isinstance(resized, list) or len(resized) != 2 or not all(type(side) is int for side in resized):
            raise ValueError(
                f"{answers.stats_file}: expected the resized picture's width and height of row {row}, got {stats!r}"
            )
        rows.append(judge(split[row], json.loads(answer)["text"], resized))
    return rows


def _write(file: Path, content: dict) -> None:
    write_whole(file, json.dumps(content, indent=2).encode() + b"\n")


def line(name: str, summary: dict) -> str:
    """What is printed of a split."""
    return (
        f"{name}: Acc@0.5 {summary['accuracy']:.2f} % of {summary['questions']} (published counting "
        f"{summary['published_accuracy']:.2f} %), {summary['unparsable']} unparsable, {summary['missing']} missing"
    )


if __name__ == "__main__":
    run_command(main)
