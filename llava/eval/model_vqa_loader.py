"""Answer a question file with a LLaVA, dense or reduced: the paper's command.

    python -m llava.eval.model_vqa_loader --model-path DIR --question-file Q.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

Several processes share the questions: `torchrun --nproc_per_node=8 -m llava.eval.model_vqa_loader ...`. A run that was
stopped, in whatever way, is continued by the same command, also with another number of processes.
"""

import argparse
import sys
from pathlib import Path

from llava.conversation import get_conversation
from llava.model.check import check_budget, check_checkpoint, check_reduction
from vscan.eval.arguments import (
    add,
    add_reduction_arguments,
    add_run_arguments,
    parse,
    reduction_config,
    run_command,
)
from vscan.eval.questions import check_folder, check_images, chunk, read_questions
from vscan.eval.ranks import Ranks
from vscan.eval.records import AnswersFile, Part


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    parser = argparse.ArgumentParser(prog="python -m llava.eval.model_vqa_loader", add_help=False, allow_abbrev=False)
    add_run_arguments(parser, max_new_tokens=128)
    add_reduction_arguments(parser)
    add(parser, "--model-base", default=None, help="must be left out: merge an adapter into its base first")
    add(parser, "--conv-mode", default="vicuna_v1", help="conversation template")
    args, hyper_parameters = parse(parser, argv)

    # Everything that can be wrong is found before the model is loaded.
    reduction = reduction_config(args, hyper_parameters)
    get_conversation(args.conv_mode)
    if args.model_base is not None:
        raise ValueError(f"model_base: expected None (merge the adapter into its base first), got {args.model_base!r}")
    questions = chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx)
    skip = args.on_error == "skip"
    check_folder(args.image_folder) if skip else check_images(questions, args.image_folder)
    config = check_checkpoint(args.model_path)
    check_reduction(reduction, config, args.model_path)

    ranks = Ranks()
    answers = todo = None
    if ranks.rank == 0:
        answers = AnswersFile(args.answers_file, {**_record(args), "reduction": reduction and reduction.to_dict()})
        todo = answers.todo(questions)
    todo = ranks.share(todo)
    shard = ranks.shard(todo)
    if shard:
        part = answers if ranks.num_ranks == 1 else Part.of_rank(args.answers_file, ranks.rank, ranks.num_ranks)
        _answer(args, reduction, config, questions, shard, part, ranks)
        if part is not answers:
            part.close()
    ranks.share()
    if ranks.rank == 0:
        answers.merge()
        left = answers.todo(questions)
        if left and not skip:
            raise OSError(f"{args.answers_file}: expected {len(questions)} rows, {len(left)} are missing; run it again")
        if left:
            print(
                f"{args.answers_file}: {len(left)} of {len(questions)} rows were skipped, see "
                f"{answers.skipped_file.name}; the same command tries them again",
                file=sys.stderr,
            )
        elif not todo:
            print(f"{args.answers_file}: {len(questions)} rows, nothing left to answer")


def _answer(args, reduction, config: dict, questions: list[dict], todo: list[int], part: Part, ranks: Ranks) -> None:
    """Load the model and answer the rows `todo` into `part`."""
    from llava.mm_utils import get_model_name_from_path
    from vscan.api import apply_config
    from vscan.eval.runner import run

    from .answering import Answering, Preparation, load_checked

    name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor = load_checked(
        args.model_path, ranks.device(args.device), args.dtype, args.attn_implementation
    )
    model.generation_config.max_length = None  # the checkpoint's own would be warned about at every call
    applied = None
    if reduction is not None:
        applied = apply_config(model, reduction)
        check_budget(reduction, config, applied.num_tokens)
    sampling = {"do_sample": False, "temperature": None, "top_p": None}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    run(
        questions,
        todo,
        part,
        name,
        Preparation.of(model, tokenizer, image_processor, args.image_folder, args.conv_mode, reduction=applied),
        Answering(
            tokenizer,
            model,
            applied,
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            **sampling,
        ),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        skip=args.on_error == "skip",
        show_progress=ranks.rank == 0,
    )


def _record(args: argparse.Namespace) -> dict:
    """What decides the answers, for the record beside them: the flags, without where answers go and how fast."""
    free = {"answers_file", "num_workers", "on_error"}
    free |= {"visual_token_num", "layer_list", "image_token_list", "method", "positions"}  # in `reduction`
    record = {name: value for name, value in vars(args).items() if name not in free}
    return {**record, "model_path": str(Path(args.model_path).resolve())}


if __name__ == "__main__":
    run_command(main)
