"""Video-LLaVA's own command for ActivityNet-QA: `llava.eval.run_inference_video_qa` with `v_` before a clip's name.

    python -m llava.eval.run_inference_video_qa_act --model_path DIR --cache_dir DIR --video_dir DIR \\
        --gt_file_question test_q.json --gt_file_answers test_a.json --output_dir DIR --output_name 1_0
"""

from vscan.eval.arguments import run_command

from . import run_inference_video_qa


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        FileNotFoundError, ValueError: for bad input; rows answered before it are kept.
    """
    run_inference_video_qa.main(argv, "run_inference_video_qa_act", prefix="v_")


if __name__ == "__main__":
    run_command(main)
