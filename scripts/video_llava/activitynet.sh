#!/usr/bin/env bash
# ActivityNet-QA: 8,000 questions about long clips (Video-LLaVA); 25 % of the tokens, as published. A judge scores them.
BUDGET=${BUDGET:-25}
source "$(dirname "$0")/../_common.sh"

begin video_llava activitynet "$@"
questions GPT_Zero_Shot_QA/Activitynet_Zero_Shot_QA/test_q.json activitynet/test_q.json
videos all_test videos
answer llava.eval.model_vqa_video --on-error skip
score
