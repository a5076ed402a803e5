#!/usr/bin/env bash
# ScienceQA: accuracy over the 2,017 questions with an image (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 science_qa "$@"
questions scienceqa/llava_test_CQM-A.json
images scienceqa/images/test
answer llava.eval.model_vqa_science --single-pred-prompt
score
