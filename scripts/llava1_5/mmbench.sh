#!/usr/bin/env bash
# MMBench (dev, 2023-07-12): circular accuracy, and the table for the server (LLaVA-1.5).
source "$(dirname "$0")/../_common.sh"

begin llava1_5 mmbench "$@"
questions mmbench/mmbench_dev_20230712.tsv
answer llava.eval.model_vqa_mmbench --single-pred-prompt
score
