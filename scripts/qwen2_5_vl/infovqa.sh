#!/usr/bin/env bash
# InfoVQA: ANLS on the validation questions (Qwen2.5-VL).
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl infovqa "$@"
questions infovqa/{llava_infovqa_val.jsonl,infographicsVQA_val_v1.0_withQT.json,infographicsVQA_val_v1.0.json}
images infovqa/infographicsvqa_images infovqa/images
document_questions
answer qwen.eval.model_vqa_loader
score
