#!/usr/bin/env bash
# MSVD-QA: 13,157 questions about short clips (Video-LLaVA); 25 % of the tokens, as published. A judge scores them.
BUDGET=${BUDGET:-25}
source "$(dirname "$0")/../_common.sh"

begin video_llava msvd "$@"
questions GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA/test_q.json msvd/test_q.json
videos videos
answer llava.eval.model_vqa_video --on-error skip
score
