#!/usr/bin/env bash
# SEED-Bench: accuracy on 14,233 images and 5,009 videos' middle frames (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl seed_bench "$@"
questions seed_bench/llava-seed-bench.jsonl
images seed_bench
answer qwen.eval.model_vqa_loader
score
