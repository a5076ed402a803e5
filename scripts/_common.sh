# shellcheck shell=bash
# What every script of a benchmark shares; they source it. All that can be chosen comes from the environment:
#
#   DATA     folder of the benchmarks (../data/eval; playground/data/eval for v1_5 and v1_6), see
#            playground/data/eval/README.md
#   MODELS   folder of the checkpoints (../models), and MODEL the name of one (the 7B of the family), of any number of
#            layers
#   OUT      folder for answers and scores (playground/out/eval)
#   METHOD   vscan, or any other of vscan.METHODS; v1_5 and v1_6 are VisPruner
#   BUDGET   11.1, 22.2 or 33.3: percent of the visual tokens that stay, averaged over the decoder's layers; or dense;
#            of clips 25, 22.2, 11.1 or 5.6
#   LAYER    the decoder layer before which VScan prunes (what the checkpoint says, else the middle one)
#   LIMIT    try the first so many questions only
#   DRY=1    print the commands, run nothing
#   CUDA_VISIBLE_DEVICES    the GPUs that share the questions, such as 0,1,2,3
#   PYTHON   the interpreter (.venv/bin/python where there is one)
#
# Relative paths are relative to the project's folder. A script says, in this order: begin, questions, images (unless the
# questions hold them), document_questions (where they may be official ones), answer, and score; of clips, videos stands
# in place of images.

set -euo pipefail
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
MODELS=${MODELS:-../models}
OUT=${OUT:-playground/out/eval}
METHOD=${METHOD:-vscan}
BUDGET=${BUDGET:-11.1}
LAYER=${LAYER:-}
LIMIT=${LIMIT:-}
DRY=${DRY:-}

fail() {
    echo "error: $*" >&2
    exit 2
}

# lack STATUS WHAT: something that a run needs is not there: the end, before anything has started, with that exit code;
# a dry run only says so.
lack() {
    local status=$1
    shift
    if [ -z "$DRY" ]; then
        echo "error: $*" >&2
        exit "$status"
    fi
    echo "missing: $*" >&2
}

# Print a command as a shell reads it, and run it.
execute() {
    local word line='' quote="'\\''"
    for word in "$@"; do
        case $word in '' | *[!A-Za-z0-9_./:=,+-]*) word=\'${word//\'/$quote}\' ;; esac
        line+=" $word"
    done
    echo "${line# }"
    if [ -z "$DRY" ]; then "$@"; fi
}

# FOUND is the first of the paths under DATA that exists; the first of all where none does. Where not even the folder of
# that one is there, the exit code is 3: run_all.sh leaves such a benchmark out.
find_data() {
    local path places='' status=2 what=$1
    shift
    for path in "$@"; do
        FOUND=$DATA/$path
        if [ -e "$FOUND" ]; then return; fi
        places+="${places:+ or }$FOUND"
    done
    FOUND=$DATA/$1
    if [ ! -d "$DATA/$(own_folder "$1")" ]; then status=3; fi
    lack "$status" "$what: expected $places, found none (see playground/data/eval/README.md)"
}

# The folder of a benchmark, from a path in it: those of clips lie one below their common one.
own_folder() {
    local rest=${1#GPT_Zero_Shot_QA/}
    if [ "$rest" = "$1" ]; then echo "${1%%/*}"; else echo "GPT_Zero_Shot_QA/${rest%%/*}"; fi
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
    IMAGES= VIDEOS= TRUTH=
    case $FAMILY in
    llava1_5 | v1_5) checkpoint=llava-v1.5-7b ;;
    llava1_6 | v1_6) checkpoint=llava-v1.6-vicuna-7b ;;
    qwen2_5_vl) checkpoint=Qwen2.5-VL-7B-Instruct ;;
    video_llava) checkpoint=Video-LLaVA-7B ;;
    *) fail "family: expected llava1_5, llava1_6, qwen2_5_vl, video_llava, v1_5 or v1_6, got '$FAMILY'" ;;
    esac
    case $FAMILY in
    qwen2_5_vl) ;;
    video_llava) FAMILY_FLAGS+=(--conv-mode llava_v1) ;;
    *) FAMILY_FLAGS+=(--conv-mode vicuna_v1) ;;
    esac
    case ${MODEL:=} in */* | . | ..) fail "MODEL: expected the name of a folder in MODELS, got '$MODEL'" ;; esac
    CHECKPOINT=$MODELS/${MODEL:-$checkpoint}
    choose_reduction "$@"
    if [ -n "$LIMIT" ]; then
        case $LIMIT in *[!0-9]* | 0*) fail "LIMIT: expected a number of questions of at least 1, got '$LIMIT'" ;; esac
    fi
    # A model of one's own is part of the path, as method and budget are: no run overwrites another.
    name=${MODEL:+$MODEL-}$REDUCTION_NAME${LIMIT:+-first$LIMIT}
    RUN=$OUT/$FAMILY/$BENCHMARK/$name
    ANSWERS=$RUN/answers.jsonl
    if [ ! -d "$CHECKPOINT" ]; then lack 2 "model: expected a checkpoint folder at $CHECKPOINT, found none (MODELS)"; fi
}

# REDUCTION is the flags, REDUCTION_NAME their place in the answers' path.
choose_reduction() {
    local flags
    case $FAMILY in v1_*)
        if [ $# != 2 ]; then fail "expected TOKENS IMPORTANT_RATIO, such as 64 0.75, got '$*'"; fi
        case $1 in '' | *[!0-9]* | 0*) fail "TOKENS: expected a number of tokens of at least 1, got '$1'" ;; esac
        if ! [[ $2 =~ ^(0(\.[0-9]+)?|1(\.0+)?)$ ]]; then
            fail "IMPORTANT_RATIO: expected 0 to 1, such as 0.75, got '$2'"
        fi
        REDUCTION=(--method vispruner --visual_token_num "$1" --important_ratio "$2")
        REDUCTION_NAME=vispruner-$1-$2
        return
        ;;
    esac
    if [ $# != 0 ]; then fail "expected no arguments (METHOD and BUDGET say what is kept), got '$*'"; fi
    flags=$("$PYTHON" scripts/reduction_flags.py --model "$CHECKPOINT" --layer "$LAYER" -- \
        "$FAMILY" "$METHOD" "$BUDGET")
    read -r -a REDUCTION <<<"$flags"
    REDUCTION_NAME=$METHOD-$BUDGET${LAYER:+-layer$LAYER}
    if [ "$BUDGET" = dense ]; then REDUCTION_NAME=dense; fi
}

# questions FOLDER/FILE...: the question file, in one of its known places; its first folder is the benchmark's.
questions() {
    find_data "questions" "$@"
    QUESTIONS=$FOUND
    FOLDER=$DATA/$(own_folder "${FOUND#"$DATA"/}")
}

# images FOLDER...: where the pictures lie, in one of the known places.
images() {
    find_data "images" "$@"
    IMAGES=$FOUND
}

# videos FOLDER...: where the clips lie, in one of the known places beside the questions, as the right answers do.
videos() {
    local beside=${QUESTIONS#"$DATA"/}
    find_data "videos" "${@/#/${beside%/*}/}"
    VIDEOS=$FOUND
    TRUTH=$(dirname "$QUESTIONS")/test_a.json
    if [ ! -e "$TRUTH" ]; then lack 2 "right answers: expected $TRUTH, found none"; fi
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
    TRUTH=${TRUTH:+$(dirname "$QUESTIONS")/test_a.json}
}

# run_module MODULE FLAGS...: on every GPU that is visible; then all processes share the questions.
run_module() {
    local devices device number=0
    IFS=, read -r -a devices <<<"${CUDA_VISIBLE_DEVICES:-}"
    for device in ${devices[@]+"${devices[@]}"}; do
        if [ -n "$device" ]; then number=$((number + 1)); fi
    done
    if [ "$number" -lt 2 ]; then
        execute "$PYTHON" -m "$@"
    else
        execute "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$number" -m "$@"
    fi
}

# answer MODULE FLAGS...: answer the questions; those that have an answer keep it.
answer() {
    local module=$1
    shift
    limit
    run_module "$module" --model-path "$CHECKPOINT" --question-file "$QUESTIONS" \
        ${IMAGES:+--image-folder "$IMAGES"} ${TRUTH:+--truth-file "$TRUTH"} \
        ${VIDEOS:+--video-folder "$VIDEOS"} --answers-file "$ANSWERS" "${FAMILY_FLAGS[@]}" \
        ${REDUCTION[@]+"${REDUCTION[@]}"} "$@"
}

# locate MODULE: the same for RefCOCO, whose answers are a file for each split.
locate() {
    limit
    ANSWERS=$RUN
    run_module "$1" --model-path "$CHECKPOINT" --data-root "$(dirname "$QUESTIONS")" --image-root "$IMAGES" \
        --output-dir "$ANSWERS" "${FAMILY_FLAGS[@]}" ${REDUCTION[@]+"${REDUCTION[@]}"}
}

# What the answers are worth, beside them; and the file that a server or a judge needs, where only these can tell.
score() {
    execute "$PYTHON" -m vscan.eval "$BENCHMARK" --answers "$ANSWERS" --data "$FOLDER" --output "$RUN/scores.json"
}
