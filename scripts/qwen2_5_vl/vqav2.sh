#!/usr/bin/env bash
# VQAv2: test-dev, which the server scores (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl vqav2 "$@"
questions vqav2/llava_vqav2_mscoco_test-dev2015.jsonl
images vqav2/test2015
answer qwen.eval.model_vqa_loader
score
