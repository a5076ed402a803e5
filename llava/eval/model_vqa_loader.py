"""Answer a question file with a LLaVA, dense or reduced: the paper's command.

    python -m llava.eval.model_vqa_loader --model-path DIR --question-file Q.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96
"""

import argparse
import sys
from pathlib import Path

from llava.conversation import get_conversation
from vscan.eval.arguments import add, add_reduction_arguments, add_run_arguments, parse, reduction_config
from vscan.eval.questions import check_images, chunk, read_questions
from vscan.eval.records import AnswersFile


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
    questions = chunk(read_questions(args.question_file), args.num_chunks, args.chunk_idx)
    check_images(questions, args.image_folder)
    answers = AnswersFile(args.answers_file, {**_record(args), "reduction": reduction and reduction.to_dict()})
    if answers.num_done == len(questions):
        print(f"{args.answers_file}: {len(questions)} rows, nothing left to answer")
        return

    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model
    from vscan.api import apply_config
    from vscan.eval.runner import run

    from .answering import Answering, Preparation

    name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path,
        args.model_base,
        name,
        device=args.device,
        attn_implementation=args.attn_implementation,
        dtype=args.dtype,
    )
    model.generation_config.max_length = None  # the checkpoint's own would be warned about at every call
    applied = None if reduction is None else apply_config(model, reduction)
    sampling = {"do_sample": False, "temperature": None, "top_p": None}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    run(
        questions,
        answers,
        name,
        Preparation.of(model, tokenizer, image_processor, args.image_folder, args.conv_mode),
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
    )


def _record(args: argparse.Namespace) -> dict:
    """What decides the answers, for the record beside them: the flags, without where answers go and how fast."""
    free = {"answers_file", "num_workers", "visual_token_num", "layer_list", "image_token_list", "method", "positions"}
    record = {name: value for name, value in vars(args).items() if name not in free}
    return {**record, "model_path": str(Path(args.model_path).resolve())}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
