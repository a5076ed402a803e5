"""Answer ScienceQA with a Qwen2.5-VL, dense or reduced.

    python -m qwen.eval.model_vqa_science --model-path DIR --question-file llava_test_CQM-A.json --image-folder DIR \\
        --answers-file A.jsonl --single-pred-prompt --temperature 0 \\
        --layer-list '[14]' --image-token-ratio-list '[0.333]' --image-token-ratio 0.167

Shards and stopped runs are as in `qwen.eval.model_vqa_loader`.
"""

from vscan.eval.arguments import add, run_command
from vscan.eval.questions import check_folder, check_images
from vscan.eval.science import read_science, science_row
from vscan.io.images import ImageFolder

from .command import Command, answer_questions, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    parser = question_parser("model_vqa_science", max_new_tokens=1024)
    add(parser, "--single-pred-prompt", action="store_true", help="ask for the option's letter")
    command = Command("model_vqa_science", parser, argv)
    args = command.args
    questions = command.chunk(read_science(args.question_file, args.single_pred_prompt))
    check_folder(args.image_folder) if command.skips else check_images(questions, args.image_folder)
    answer_questions(command, questions, ImageFolder(args.image_folder), science_row)


if __name__ == "__main__":
    run_command(main)
