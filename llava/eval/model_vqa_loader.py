"""Answer a question file with a LLaVA, dense or reduced: the paper's command.

    python -m llava.eval.model_vqa_loader --model-path DIR --question-file Q.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

Several processes share the questions: `torchrun --nproc_per_node=8 -m llava.eval.model_vqa_loader ...`. A run that was
stopped, in whatever way, is continued by the same command, also with another number of processes.
"""

import argparse
from functools import partial

from llava.conversation import get_conversation
from llava.model.check import check_budget, check_checkpoint, check_reduction
from vscan.eval.arguments import (
    add,
    add_generation_arguments,
    add_question_arguments,
    add_reduction_arguments,
    generation,
    parse,
    reduction_config,
    run_command,
    run_record,
)
from vscan.eval.checkpoint import model_name
from vscan.eval.questions import check_folder, check_images, chunk, read_questions
from vscan.eval.ranks import Ranks
from vscan.eval.records import Part
from vscan.eval.runner import answer_file, run


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    parser = argparse.ArgumentParser(prog="python -m llava.eval.model_vqa_loader", add_help=False, allow_abbrev=False)
    add_question_arguments(parser)
    add_generation_arguments(parser, max_new_tokens=128)
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

    record = {**run_record(args), "reduction": reduction and reduction.to_dict()}
    ranks = Ranks()
    answer_file(
        args.answers_file, record, questions, partial(_answer, args, reduction, config, questions, ranks), ranks, skip
    )


def _answer(args, reduction, config: dict, questions: list[dict], ranks: Ranks, todo: list[int], part: Part) -> None:
    """Load the model and answer the rows `todo` into `part`."""
    from vscan.api import apply_config

    from .answering import Answering, Preparation, load_checked

    tokenizer, model, image_processor = load_checked(
        args.model_path, ranks.device(args.device), args.dtype, args.attn_implementation
    )
    model.generation_config.max_length = None  # the checkpoint's own would be warned about at every call
    applied = None
    if reduction is not None:
        applied = apply_config(model, reduction)
        check_budget(reduction, config, applied.num_tokens)
    run(
        questions,
        todo,
        part,
        model_name(args.model_path),
        Preparation.of(model, tokenizer, image_processor, args.image_folder, args.conv_mode, reduction=applied),
        Answering(tokenizer, model, applied, **generation(args)),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        skip=args.on_error == "skip",
        show_progress=ranks.rank == 0,
    )


if __name__ == "__main__":
    run_command(main)
