"""Video-LLaVA's own command for MSVD-QA, MSRVTT-QA and TGIF-QA: its flags, its file, and all flags of our loaders.

    python -m llava.eval.run_inference_video_qa --model_path DIR --cache_dir DIR --video_dir DIR \\
        --gt_file_question test_q.json --gt_file_answers test_a.json --output_dir DIR --output_name 1_0 \\
        --visual_token_num 96 --layer_list '[16]' --image_token_list '[32]'

`DIR/1_0.json` gets a JSON object a line: id, question, answer, pred. Right answers belong to questions by their id,
also in the second of several chunks; answering is greedy. As published, a question whose clip is missing has no row;
the last line says how many these are, and which clips.
"""

from pathlib import Path

from vscan.eval.arguments import run_command
from vscan.eval.video_questions import clip_row

from .video_command import VideoCommand, published_parser


def main(argv: list[str], command: str = "run_inference_video_qa", prefix: str = "") -> None:
    """Run the command.

    Args:
        argv: its flags.
        command: its name.
        prefix: what the names of clips have before that of the question.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    asked = VideoCommand(published_parser(command), argv, prefixes=(prefix,))
    asked.args.answers_file = str(Path(asked.args.output_dir) / f"{asked.args.output_name}.json")
    asked.answer_clips(clip_row, leave_missing=True)


if __name__ == "__main__":
    run_command(main)
