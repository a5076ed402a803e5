#!/usr/bin/env bash
# MM-Vet: 218 long answers, which a judge scores (LLaVA-1.5).
source "$(dirname "$0")/../_common.sh"

begin llava1_5 mm_vet "$@"
questions mm-vet/llava-mm-vet.jsonl
images mm-vet/images
answer llava.eval.model_vqa
score
