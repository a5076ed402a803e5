"""Answer questions at length with a LLaVA, dense or reduced: MM-Vet, whose question file says all that is asked.

    python -m llava.eval.model_vqa --model-path DIR --question-file llava-mm-vet.jsonl --image-folder DIR \\
        --answers-file A.jsonl --temperature 0 --conv-mode vicuna_v1 \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

It is `llava.eval.model_vqa_loader` with answers of up to 1,024 tokens.
"""

from vscan.eval.arguments import run_command
from vscan.eval.questions import read_questions

from .command import Command, question_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    command = Command(question_parser("model_vqa", max_new_tokens=1024), argv)
    command.answer_from_folder(command.chunk(read_questions(command.args.question_file)))


if __name__ == "__main__":
    run_command(main)
