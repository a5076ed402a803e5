#!/usr/bin/env bash
# GQA: accuracy on the 12,578 balanced testdev questions (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl gqa "$@"
questions gqa/llava_gqa_testdev_balanced.jsonl
images gqa/images gqa/data/images
answer qwen.eval.model_vqa_loader
score
