#!/usr/bin/env bash
# All benchmarks of a family, one after another, then the table of their scores beside the paper's:
#
#   bash scripts/run_all.sh llava1_5          (or llava1_6, qwen2_5_vl, video_llava)
#   bash scripts/run_all.sh v1_5 64 0.75      (or v1_6: TOKENS IMPORTANT_RATIO)
#
# A benchmark that fails does not stop the others, and one that has no folder in DATA is left out; the last lines name
# both. The exit code is 2 where something failed or nothing was run. See _common.sh for the variables.
source "$(dirname "$0")/_common.sh"

family=${1:-}
reports=("$OUT/$family")
case $family in
llava1_5 | llava1_6 | qwen2_5_vl | video_llava) folder=scripts/$family ;;
v1_5 | v1_6)
    folder=scripts/$family/eval
    # The dense run of the same checkpoint, of which "retained" is a share, is among those of VScan's scripts.
    if [ -d "$OUT/llava${family#v}" ]; then reports+=("$OUT/llava${family#v}"); fi
    ;;
*) fail "expected a family (llava1_5, llava1_6, qwen2_5_vl, video_llava, v1_5 or v1_6), got '$family'" ;;
esac
shift
ran='' left_out='' failed=''
for script in "$folder"/*.sh; do
    echo "== $script"
    name=$(basename "$script" .sh) status=0
    bash "$script" "$@" || status=$?
    case $status in
    0) ran+=" $name" ;;
    3) left_out+=" $name" ;;
    *) failed+=" $name" ;;
    esac
done
execute "$PYTHON" -m vscan.eval report "${reports[@]}" || failed+=" report"
if [ -n "$left_out" ]; then echo "left out, as DATA has no folder of these:$left_out" >&2; fi
if [ -n "$failed" ]; then fail "these failed, what they said is above:$failed"; fi
if [ -z "$ran" ]; then fail "nothing was run"; fi
