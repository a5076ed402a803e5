#!/usr/bin/env bash
# MMBench-CN (dev, 2023-10-03): circular accuracy, and the table for the server (LLaVA-NeXT).
source "$(dirname "$0")/../_common.sh"

begin llava1_6 mmbench_cn "$@"
questions mmbench_cn/mmbench_dev_cn_20231003.tsv mmbench/mmbench_dev_cn_20231003.tsv
answer llava.eval.model_vqa_mmbench --single-pred-prompt --lang cn
score
