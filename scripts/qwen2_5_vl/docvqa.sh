#!/usr/bin/env bash
# DocVQA: ANLS on the validation questions (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl docvqa "$@"
questions docvqa/{llava_docvqa_val.jsonl,val_v1.0_withQT.json,val_v1.0.json}
images docvqa/documents docvqa/images
document_questions
answer qwen.eval.model_vqa_loader
score
