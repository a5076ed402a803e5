#!/usr/bin/env bash
# VQAv2: test-dev, which the server scores (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 vqav2 "$@"
questions vqav2/llava_vqav2_mscoco_test-dev2015.jsonl
images vqav2/test2015
answer llava.eval.model_vqa_loader
score
