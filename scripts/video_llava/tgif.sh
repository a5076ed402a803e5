#!/usr/bin/env bash
# TGIF-QA: 13,691 questions about GIFs (Video-LLaVA); 25 % of the tokens, as published. A judge scores them.
BUDGET=${BUDGET:-25}
source "$(dirname "$0")/../_common.sh"

begin video_llava tgif "$@"
questions GPT_Zero_Shot_QA/TGIF_Zero_Shot_QA/test_q.json tgif/test_q.json
videos mp4 videos
answer llava.eval.model_vqa_video --on-error skip
score
