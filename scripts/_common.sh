# shellcheck shell=bash
# What every script of a benchmark shares; they source it. All that can be chosen comes from the environment:
#
#   DATA     folder of the benchmarks (../data/eval; playground/data/eval for v1_5 and v1_6), see
#            playground/data/eval/README.md
#   MODELS   folder of the checkpoints (../models), and MODEL the name of one (the 7B of the family)
#   OUT      folder for answers and scores (playground/out/eval)
#   METHOD   vscan, or vispruner, fastervlm, random, downsample; v1_5 and v1_6 are VisPruner
#   BUDGET   11.1, 22.2 or 33.3: percent of the visual tokens that stay, averaged over the decoder's layers; or dense
#   LIMIT    try the first so many questions only
#   DRY=1    print the commands, run nothing
#   CUDA_VISIBLE_DEVICES    the GPUs that share the questions, such as 0,1,2,3
#   PYTHON   the interpreter (.venv/bin/python where there is one)
#
# Relative paths are relative to the project's folder. A script says, in this order: begin, questions, images (unless the
# questions hold them), document_questions (where they may be official ones), answer, and score.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
MODELS=${MODELS:-../models}
OUT=${OUT:-playground/out/eval}
METHOD=${METHOD:-vscan}
BUDGET=${BUDGET:-11.1}
LIMIT=${LIMIT:-}
DRY=${DRY:-}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Something that a run needs is not there: the end, before anything has started; a dry run only says so.
lack() {
    if [ -n "$DRY" ]; then echo "missing: $*" >&2; else fail "$*"; fi
}

# Print a command as a shell reads it, and run it.
execute() {
    local word line=
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,+-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
        *) line+=" $word" ;;
        esac
    done
    echo "${line# }"
    if [ -z "$DRY" ]; then "$@"; fi
}

# FOUND is the first of the paths under DATA that exists; the first of all where none does.
find_data() {
    local path places= what=$1
    shift
    for path in "$@"; do
        FOUND=$DATA/$path
        if [ -e "$FOUND" ]; then return; fi
        places+="${places:+ or }$FOUND"
    done
    FOUND=$DATA/$1
    lack "$what: expected $places, found none (see playground/data/eval/README.md)"
}

# begin FAMILY BENCHMARK [TOKENS IMPORTANT_RATIO]: who answers what, with which reduction, and where it goes.
begin() {
    FAMILY=$1 BENCHMARK=$2
    shift 2
    local checkpoint name
    case $FAMILY in
    v1_*) DATA=${DATA:-playground/data/eval} ;;
    *) DATA=${DATA:-../data/eval} ;;
    esac
    FAMILY_FLAGS=(--temperature 0)
    IMAGES=
    case $FAMILY in
    llava1_5 | v1_5) checkpoint=llava-v1.5-7b ;;
    llava1_6 | v1_6) checkpoint=llava-v1.6-vicuna-7b ;;
    qwen2_5_vl) checkpoint=Qwen2.5-VL-7B-Instruct ;;
    *) fail "family: expected llava1_5, llava1_6, qwen2_5_vl, v1_5 or v1_6, got '$FAMILY'" ;;
    esac
    if [ "$FAMILY" != qwen2_5_vl ]; then FAMILY_FLAGS+=(--conv-mode vicuna_v1); fi
    choose_reduction "$@"
    if [ -n "$LIMIT" ]; then
        case $LIMIT in *[!0-9]* | 0*) fail "LIMIT: expected a number of questions of at least 1, got '$LIMIT'" ;; esac
    fi
    # A model of one's own is part of the path, as method and budget are: no run overwrites another.
    name=${MODEL:+$MODEL-}$REDUCTION_NAME${LIMIT:+-first$LIMIT}
    RUN=$OUT/$FAMILY/$BENCHMARK/$name
    ANSWERS=$RUN/answers.jsonl
    CHECKPOINT=$MODELS/${MODEL:-$checkpoint}
    if [ ! -d "$CHECKPOINT" ]; then lack "model: expected a checkpoint folder at $CHECKPOINT, found none (MODELS)"; fi
}

# REDUCTION is the flags, REDUCTION_NAME their place in the answers' path.
choose_reduction() {
    local vision decoder average share left average_share
    case $FAMILY in v1_*)
        if [ $# != 2 ]; then fail "expected TOKENS IMPORTANT_RATIO, such as 64 0.75, got '$*'"; fi
        REDUCTION=(--method vispruner --visual_token_num "$1" --important_ratio "$2")
        REDUCTION_NAME=vispruner-$1-$2
        return
        ;;
    esac
    if [ $# != 0 ]; then fail "expected no arguments (METHOD and BUDGET say what is kept), got '$*'"; fi
    left=0.333
    case $FAMILY-$BUDGET in
    *-11.1) vision=96 decoder=32 average=64 share=0.167 average_share=0.111 ;;
    *-22.2) vision=192 decoder=64 average=128 share=0.333 average_share=0.222 ;;
    *-33.3) vision=288 decoder=96 average=192 share=0.5 average_share=0.333 ;;
    qwen2_5_vl-50) share=0.6 left=0.67 average_share=0.5 ;; # as published for RefCOCO
    *-dense) ;;
    *) fail "BUDGET: expected 11.1, 22.2, 33.3 or dense, got '$BUDGET'" ;;
    esac
    REDUCTION_NAME=$METHOD-$BUDGET
    case $FAMILY-$METHOD-$BUDGET in
    qwen2_5_vl-*-dense) REDUCTION=(--layer-list '[]' --image-token-ratio-list '[]' --image-token-ratio 1.0) ;;
    *-dense) REDUCTION=() ;;
    qwen2_5_vl-vscan-*)
        REDUCTION=(--layer-list '[14]' --image-token-ratio-list "[$left]" --image-token-ratio "$share")
        ;;
    qwen2_5_vl-*)
        REDUCTION=(--method "$METHOD" --layer-list '[]' --image-token-ratio-list '[]')
        REDUCTION+=(--image-token-ratio "$average_share")
        ;;
    *-vscan-*) REDUCTION=(--layer_list '[16]' --image_token_list "[$decoder]" --visual_token_num "$vision") ;;
    *) REDUCTION=(--method "$METHOD" --visual_token_num "$average") ;;
    esac
    if [ "$BUDGET" = dense ]; then REDUCTION_NAME=dense; fi
}

# questions FOLDER/FILE...: the question file, in one of its known places; its first folder is the benchmark's.
questions() {
    find_data "questions" "$@"
    QUESTIONS=$FOUND
    FOLDER=${FOUND#"$DATA"/}
    FOLDER=$DATA/${FOLDER%%/*}
}

# images FOLDER...: where the pictures lie, in one of the known places.
images() {
    find_data "images" "$@"
    IMAGES=$FOUND
}

# LLaVA's question file of DocVQA or InfoVQA; where it is not there yet, it is made of the official one.
document_questions() {
    QUESTIONS=$FOLDER/llava_${BENCHMARK}_val.jsonl
    if [ ! -e "$QUESTIONS" ]; then
        execute "$PYTHON" scripts/convert_document_questions.py "$BENCHMARK" --data "$FOLDER"
    fi
}

# QUESTIONS and FOLDER become copies with the first LIMIT questions alone, so that the score is that of these.
limit() {
    if [ -z "$LIMIT" ]; then return; fi
    local question_file=${QUESTIONS#"$FOLDER"/}
    execute "$PYTHON" scripts/first_rows.py "$BENCHMARK" --data "$FOLDER" --question-file "$question_file" \
        --rows "$LIMIT" --output "$RUN/data"
    FOLDER=$RUN/data
    QUESTIONS=$FOLDER/$question_file
}

# run_module MODULE FLAGS...: on every GPU that is visible; then all processes share the questions.
run_module() {
    local commas=${CUDA_VISIBLE_DEVICES:-}
    commas=${commas//[!,]/}
    if [ -z "$commas" ]; then
        execute "$PYTHON" -m "$@"
    else
        execute "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node=$((${#commas} + 1)) -m "$@"
    fi
}

# answer MODULE FLAGS...: answer the questions; those that have an answer keep it.
answer() {
    local module=$1
    shift
    limit
    run_module "$module" --model-path "$CHECKPOINT" --question-file "$QUESTIONS" \
        ${IMAGES:+--image-folder "$IMAGES"} --answers-file "$ANSWERS" "${FAMILY_FLAGS[@]}" \
        ${REDUCTION[@]+"${REDUCTION[@]}"} "$@"
}

# locate MODULE: the same for RefCOCO, whose answers are a file for each split.
locate() {
    limit
    ANSWERS=$RUN
    run_module "$1" --model-path "$CHECKPOINT" --data-root "$(dirname "$QUESTIONS")" --image-root "$IMAGES" \
        --output-dir "$ANSWERS" "${FAMILY_FLAGS[@]}" "${REDUCTION[@]}"
}

# What the answers are worth, beside them; and the file that a server or a judge needs, where only these can tell.
score() {
    execute "$PYTHON" -m vscan.eval "$BENCHMARK" --answers "$ANSWERS" --data "$FOLDER" --output "$RUN/scores.json"
}
