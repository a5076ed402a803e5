#!/usr/bin/env bash
# MME: perception and cognition, 2,374 questions (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 mme "$@"
questions MME/llava_mme.jsonl
images MME/MME_Benchmark_release_version/MME_Benchmark MME/MME_Benchmark_release_version
answer llava.eval.model_vqa_loader
score
