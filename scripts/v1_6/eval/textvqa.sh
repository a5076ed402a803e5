#!/usr/bin/env bash
# TextVQA: soft accuracy on the 5,000 validation questions, with OCR words (LLaVA-NeXT and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_6 textvqa "$@"
questions textvqa/llava_textvqa_val_v051_ocr.jsonl
images textvqa/train_images
answer llava.eval.model_vqa_loader
score
