"""Answer a question file with a LLaVA, dense or reduced: the paper's command.

    python -m llava.eval.model_vqa_loader --model-path DIR --question-file Q.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

Several processes share the questions: `torchrun --nproc_per_node=8 -m llava.eval.model_vqa_loader ...`. A run that was
stopped, in whatever way, is continued by the same command, also with another number of processes.
"""

from vscan.eval.arguments import run_command
from vscan.eval.questions import read_questions

from .command import Command, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    command = Command(question_parser("model_vqa_loader", max_new_tokens=128), argv)
    command.answer_from_folder(command.chunk(read_questions(command.args.question_file)))


if __name__ == "__main__":
    run_command(main)
