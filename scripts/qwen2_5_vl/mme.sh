#!/usr/bin/env bash
# MME: perception and cognition, 2,374 questions (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl mme "$@"
questions MME/llava_mme.jsonl
images MME/MME_Benchmark_release_version/MME_Benchmark MME/MME_Benchmark_release_version
answer qwen.eval.model_vqa_loader
score
