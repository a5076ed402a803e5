#!/usr/bin/env bash
# GQA: accuracy on the 12,578 balanced testdev questions (LLaVA-NeXT and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_6 gqa "$@"
questions gqa/llava_gqa_testdev_balanced.jsonl
images gqa/images gqa/data/images
answer llava.eval.model_vqa_loader
score
