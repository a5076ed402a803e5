#!/usr/bin/env bash
# ScienceQA: accuracy over the 2,017 questions with an image (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl science_qa "$@"
questions scienceqa/llava_test_CQM-A.json
images scienceqa/images/test
answer qwen.eval.model_vqa_science --single-pred-prompt
score
