#!/usr/bin/env bash
# All benchmarks of a family, one after another, then the table of their scores beside the paper's:
#
#   bash scripts/run_all.sh llava1_5          (or llava1_6, qwen2_5_vl)
#   bash scripts/run_all.sh v1_5 64 0.75      (or v1_6: TOKENS IMPORTANT_RATIO)
#
# A benchmark that fails does not stop the others; the last line names those that did. See _common.sh for the variables.
source "$(dirname "$0")/_common.sh"

family=${1:-}
if [ -z "$family" ] || ! folder=$(ls -d "scripts/$family/eval" 2>/dev/null || ls -d "scripts/$family" 2>/dev/null); then
    fail "expected a family (llava1_5, llava1_6, qwen2_5_vl, v1_5 or v1_6), got '$family'"
fi
shift
failed=
for script in "$folder"/*.sh; do
    echo "== $script"
    bash "$script" "$@" || failed+=" $(basename "$script" .sh)"
done
execute "$PYTHON" -m vscan.eval report "$OUT/$family"
if [ -n "$failed" ]; then fail "these failed, what they said is above:$failed"; fi
