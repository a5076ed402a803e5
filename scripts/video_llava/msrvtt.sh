#!/usr/bin/env bash
# MSRVTT-QA: 72,821 questions about clips (Video-LLaVA); 25 % of the tokens, as published. A judge scores them.
BUDGET=${BUDGET:-25}
source "$(dirname "$0")/../_common.sh"

begin video_llava msrvtt "$@"
questions GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA/test_q.json msrvtt/test_q.json
videos videos/all videos
answer llava.eval.model_vqa_video --on-error skip
score
