#!/usr/bin/env bash
# GQA: accuracy on the 12,578 balanced testdev questions (LLaVA-1.5).
source "$(dirname "$0")/../_common.sh"

begin llava1_5 gqa "$@"
questions gqa/llava_gqa_testdev_balanced.jsonl
images gqa/images gqa/data/images
answer llava.eval.model_vqa_loader
score
