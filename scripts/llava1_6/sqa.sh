#!/usr/bin/env bash
# ScienceQA: accuracy over the 2,017 questions with an image (LLaVA-NeXT).
source "$(dirname "$0")/../_common.sh"

begin llava1_6 science_qa "$@"
questions scienceqa/llava_test_CQM-A.json
images scienceqa/images/test
answer llava.eval.model_vqa_science --single-pred-prompt
score
