#!/usr/bin/env bash
# MM-Vet: 218 long answers, which a judge scores (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl mm_vet "$@"
questions mm-vet/llava-mm-vet.jsonl
images mm-vet/images
answer qwen.eval.model_vqa_loader --max_new_tokens 1024
score
