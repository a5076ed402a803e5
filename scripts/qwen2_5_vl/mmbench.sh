#!/usr/bin/env bash
# MMBench (dev, 2023-07-12): circular accuracy, and the table for the server (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl mmbench "$@"
questions mmbench/mmbench_dev_20230712.tsv
answer qwen.eval.model_vqa_mmbench --single-pred-prompt
score
