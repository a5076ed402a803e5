"""Answer MMBench with a LLaVA, dense or reduced; its table holds the pictures.

    python -m llava.eval.model_vqa_mmbench --model-path DIR --question-file mmbench_dev_20230712.tsv \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

Shards and stopped runs are as in `llava.eval.model_vqa_loader`.
"""

from vscan.eval.arguments import add, run_command
from vscan.eval.mmbench import SUFFIXES, mmbench_row, read_mmbench, rounds
from vscan.io.images import embedded_image

from .command import Command, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    parser = question_parser("model_vqa_mmbench", max_new_tokens=1024, has_folder=False)
    add(parser, "--all-rounds", action="store_true", help="ask once for every rotation of the options")
    add(parser, "--single-pred-prompt", action="store_true", help="ask for the option's letter")
    add(parser, "--lang", default="en", choices=list(SUFFIXES), help="language in which it is asked for")
    command = Command(parser, argv)
    args = command.args
    options = (args.all_rounds, args.single_pred_prompt, args.lang)
    entries = command.chunk(read_mmbench(args.question_file))
    command.answer([question for entry in entries for question in rounds(entry, *options)], embedded_image, mmbench_row)


if __name__ == "__main__":
    run_command(main)
