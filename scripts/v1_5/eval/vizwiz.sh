#!/usr/bin/env bash
# VizWiz: the 8,000 test questions, which the server scores (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 vizwiz "$@"
questions vizwiz/llava_test.jsonl
images vizwiz/test
answer llava.eval.model_vqa_loader
score
