#!/usr/bin/env bash
# POPE: the mean of three F1, 8,910 questions (LLaVA-1.5).
source "$(dirname "$0")/../_common.sh"

begin llava1_5 pope "$@"
questions pope/llava_pope_test.jsonl
images pope/val2014
answer llava.eval.model_vqa_loader
score
