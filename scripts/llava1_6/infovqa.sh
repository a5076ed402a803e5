#!/usr/bin/env bash
# InfoVQA: ANLS on the validation questions (LLaVA-NeXT).
source "$(dirname "$0")/../_common.sh"

begin llava1_6 infovqa "$@"
questions infovqa/{llava_infovqa_val.jsonl,infographicsVQA_val_v1.0_withQT.json,infographicsVQA_val_v1.0.json}
images infovqa/infographicsvqa_images infovqa/images
document_questions
answer llava.eval.model_vqa_loader
score
