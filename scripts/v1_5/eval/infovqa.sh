#!/usr/bin/env bash
# InfoVQA: ANLS on the validation questions (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 infovqa "$@"
questions infovqa/{llava_infovqa_val.jsonl,infographicsVQA_val_v1.0_withQT.json,infographicsVQA_val_v1.0.json}
images infovqa/infographicsvqa_images infovqa/images
document_questions
answer llava.eval.model_vqa_loader
score
