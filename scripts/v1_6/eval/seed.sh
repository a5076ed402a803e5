#!/usr/bin/env bash
# SEED-Bench: accuracy on 14,233 images and 5,009 videos' middle frames (LLaVA-NeXT and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_6 seed_bench "$@"
questions seed_bench/llava-seed-bench.jsonl
images seed_bench
answer llava.eval.model_vqa_loader
score
