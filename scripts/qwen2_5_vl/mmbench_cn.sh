#!/usr/bin/env bash
# MMBench-CN (dev, 2023-10-03): circular accuracy, and the table for the server (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl mmbench_cn "$@"
questions mmbench_cn/mmbench_dev_cn_20231003.tsv mmbench/mmbench_dev_cn_20231003.tsv
answer qwen.eval.model_vqa_mmbench --single-pred-prompt --lang cn
score
