#!/usr/bin/env bash
# RefCOCO, RefCOCO+ and RefCOCOg: Acc@0.5 on 8 splits (Qwen2.5-VL); 50 % of the tokens, as published.
BUDGET=${BUDGET:-50}
source "$(dirname "$0")/../_common.sh"

begin qwen2_5_vl refcoco "$@"
questions refcoco/refcoco_val.json refcoco/rec_jsons_processed/refcoco_val.json
images refcoco/images refcoco/coco refcoco
locate qwen.eval.test_refcoco
score
