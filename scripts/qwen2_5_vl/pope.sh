#!/usr/bin/env bash
# POPE: the mean of three F1, 8,910 questions (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl pope "$@"
questions pope/llava_pope_test.jsonl
images pope/val2014
answer qwen.eval.model_vqa_loader
score
