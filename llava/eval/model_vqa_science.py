"""Answer ScienceQA with a LLaVA, dense or reduced.

    python -m llava.eval.model_vqa_science --model-path DIR --question-file llava_test_CQM-A.json --image-folder DIR \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

Shards and stopped runs are as in `llava.eval.model_vqa_loader`.
"""

from vscan.eval.arguments import add, run_command
from vscan.eval.science import read_science, science_row

from .command import Command, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    parser = question_parser("model_vqa_science", max_new_tokens=1024)
    add(parser, "--single-pred-prompt", action="store_true", help="ask for the option's letter")
    command = Command(parser, argv)
    questions = command.chunk(read_science(command.args.question_file, command.args.single_pred_prompt))
    command.answer_from_folder(questions, science_row)


if __name__ == "__main__":
    run_command(main)
