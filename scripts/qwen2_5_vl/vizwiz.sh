#!/usr/bin/env bash
# VizWiz: the 8,000 test questions, which the server scores (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl vizwiz "$@"
questions vizwiz/llava_test.jsonl
images vizwiz/test
answer qwen.eval.model_vqa_loader
score
