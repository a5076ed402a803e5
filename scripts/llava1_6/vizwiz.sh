#!/usr/bin/env bash
# VizWiz: the 8,000 test questions, which the server scores (LLaVA-NeXT).
source "$(dirname "$0")/../_common.sh"

begin llava1_6 vizwiz "$@"
questions vizwiz/llava_test.jsonl
images vizwiz/test
answer llava.eval.model_vqa_loader
score
