"""Answer questions about clips with a Video-LLaVA, dense or reduced; budgets are those of a frame.

    python -m llava.eval.model_vqa_video --model-path DIR --question-file test_q.json --truth-file test_a.json \\
        --video-folder DIR --answers-file A.jsonl \\
        --layer_list '[16]' --image_token_list '[32]' --visual_token_num 96

A clip's file is named as the question's `video_name`, with `v_` before it where ActivityNet has that. Rows are those of
`llava.eval.model_vqa_loader`, with the right answer in them where a truth file is given; shards and stopped runs are as
there.
"""

from vscan.eval.arguments import run_command
from vscan.eval.video_questions import video_row
from vscan.io.frames import PREFIXES

from .video_command import VideoCommand, loader_parser


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    VideoCommand(loader_parser("model_vqa_video"), argv, prefixes=PREFIXES).answer_clips(video_row)


if __name__ == "__main__":
    run_command(main)
