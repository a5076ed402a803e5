#!/usr/bin/env bash
# MMBench (dev, 2023-07-12): circular accuracy, and the table for the server (LLaVA-NeXT).
source "$(dirname "$0")/../_common.sh"

begin llava1_6 mmbench "$@"
questions mmbench/mmbench_dev_20230712.tsv
answer llava.eval.model_vqa_mmbench --single-pred-prompt
score
