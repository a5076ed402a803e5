#!/usr/bin/env bash
# TextVQA: soft accuracy on the 5,000 validation questions, with OCR words (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl textvqa "$@"
questions textvqa/llava_textvqa_val_v051_ocr.jsonl
images textvqa/train_images
answer qwen.eval.model_vqa_loader
score
