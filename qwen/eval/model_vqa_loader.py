"""Answer a question file with a Qwen2.5-VL, dense or reduced: the paper's command.

    python -m qwen.eval.model_vqa_loader --model-path DIR --question-file Q.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 \\
        --layer-list '[14]' --image-token-ratio-list '[0.333]' --image-token-ratio 0.167

Several processes share the questions: `torchrun --nproc_per_node=8 -m qwen.eval.model_vqa_loader ...`. A run that was
stopped, in whatever way, is continued by the same command, also with another number of processes.
"""

from vscan.eval.arguments import run_command
from vscan.eval.questions import check_folder, check_images, read_questions
from vscan.io.images import ImageFolder

from .command import Command, answer_questions, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    command = Command("model_vqa_loader", question_parser("model_vqa_loader", max_new_tokens=128), argv)
    args = command.args
    questions = command.chunk(read_questions(args.question_file))
    check_folder(args.image_folder) if command.skips else check_images(questions, args.image_folder)
    answer_questions(command, questions, ImageFolder(args.image_folder))


if __name__ == "__main__":
    run_command(main)
