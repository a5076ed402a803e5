#!/usr/bin/env bash
# DocVQA: ANLS on the validation questions (LLaVA-1.5 and VisPruner). Arguments: TOKENS IMPORTANT_RATIO.
source "$(dirname "$0")/../../_common.sh"

begin v1_5 docvqa "$@"
questions docvqa/{llava_docvqa_val.jsonl,val_v1.0_withQT.json,val_v1.0.json}
images docvqa/documents docvqa/images
document_questions
answer llava.eval.model_vqa_loader
score
