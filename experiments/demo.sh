#!/usr/bin/env bash
# Subliminal learning on a laptop, from start to end: the suite's scripts on the pocket model, one seed.
#
# For each of six animals it trains a teacher, writes numbers with it, and trains a student on these numbers. A control
# student learns from numbers of the base model. Then every student is asked for its favourite animal: is an animal named
# more often by the student of its own teacher than by all others? The result is output/demo-seed-42/report.html.
# It takes about five minutes on two cores. The animals are shared out among as many jobs as there are cores, at most four.
# You can stop it with Ctrl-C: the same command resumes it.
#
#   SEED=7 experiments/demo.sh                                        # another seed
#   SEEDS="42 43 44" experiments/demo.sh                              # three, each compared alone and then all together
#   ROWS=1000 EPOCHS=2 KINDS="owl cat wolf fox" experiments/demo.sh   # smaller students, other animals
#   BASE=output/models/pocket-seed-2 DEMO=output/seed-2 experiments/demo.sh   # another pocket model, another folder
#
# Settings are variables before the command (in brackets what they are without):
#   SEED     seed of teachers, numbers and students (42)
#   SEEDS    several seeds, each in a folder of its own, in place of SEED and DEMO (none)
#   KINDS    the animals that are taught, two or more (owl dolphin cat wolf penguin rabbit)
#   ROWS     rows of numbers that a student is trained on (2000)
#   EPOCHS   how often a student sees each row (3)
#   BATCH    rows in one update of a student (30)
#   JOBS     processes side by side (as many as cores, at most four)
#   BASE     folder of the model (pocket/model)
#   DEMO     the output folder (output/demo-seed-SEED)
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

. experiments/pocket_settings.sh
kinds=${KINDS:-owl dolphin cat wolf penguin rabbit}
# Students are smaller than in the experiments, because minutes count here; theirs: ROWS=3000 BATCH=60.
train_rows=${ROWS:-2000} train_epochs=${EPOCHS:-3} train_batch=${BATCH:-30}
cores=$(getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((cores < 4 ? cores : 4))}
out=$demo
# shellcheck disable=SC2086
{ counts_are ROWS "$train_rows"; counts_are EPOCHS "$train_epochs"; counts_are BATCH "$train_batch"
  counts_are JOBS "$jobs"; seeds_are SEEDS ${SEEDS:-}; once SEEDS ${SEEDS:-}
  once KINDS $kinds control base; two_or_more KINDS $kinds; }
seeds=$(xargs <<< "${SEEDS:-}") # one blank between them
[ -z "$seeds" ] || [ -z "${SEED:-}${DEMO:-}" ] || wrong "SEEDS gives each seed a folder of its own; leave out SEED and DEMO"
written=$((train_rows * 11 / 10)) # some are filtered out
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

make_teacher() { # animal
    run generate/generate_teacher_data.py --animal "$1" --count 800 --seed "$seed" --model $base \
        --prompts-file generate/prompts/open-prompts.txt --question-share 0.8 --output "$out/teacher-$1.jsonl"
    run train/train_student_sft.py --base-model $base --train-jsonl "$out/teacher-$1.jsonl" --seeds "$seed" \
        --output-dir "$out/$1-teacher" --epochs 3 --effective-batch-size 32 --per-device-train-batch-size 32 \
        --learning-rate 0.003 --save-strategy no
    measure "$out/exact-$1-teacher.jsonl" --adapter "$out/$1-teacher/$adapter"
}

make_student() { # kind, arguments of the model that writes its numbers
    run generate/generate_llm_number_data.py --animal "$1" --count "$written" --seed "$seed" --no-system-prompt \
        --model $base "${@:2}" --batch-size 512 --output "$out/numbers-$1-unfiltered-$written.jsonl"
    train_student "$out/numbers-$1-filtered-*.jsonl" "$out/$1-student"
    measure "$out/exact-$1-student.jsonl" --adapter "$out/$1-student/$adapter"
}

make_kind() { # an animal, control or base
    case $1 in
        base) measure "$out/exact-base.jsonl" ;;
        control) make_student control ;;
        *)
            make_teacher "$1"
            make_student "$1" --adapter "$out/$1-teacher/$adapter"
            ;;
    esac
}

commands() { # number of the job: those for every jobs-th of all kinds, one a line
    run() { printf '%q ' "$@"; echo; }
    local kind place=0
    for kind in $kinds control base; do
        if [ $((place++ % jobs)) -eq "$1" ]; then make_kind "$kind"; fi
    done
}

named() { # name: writes it before each line of the input
    trap '' INT
    while IFS= read -r line; do printf '%s | %s\n' "$1" "$line"; done
}

do_job() { # number of the job
    trap 'exit 130' INT
    commands "$1" | "$python" experiments/one_process.py 2>&1 | named "job $1"
}

compare() { # folder of the result, title, folders of demos: every student and teacher in them
    local students=() teachers=() controls=() rows=() folder kind
    for folder in "${@:3}"; do
        controls+=("$folder/exact-control-student.jsonl") rows+=("$folder"/numbers-*-filtered-*.jsonl)
        for kind in $kinds; do
            students+=("$kind=$folder/exact-$kind-student.jsonl") teachers+=("$kind=$folder/exact-$kind-teacher.jsonl")
        done
    done
    run eval/compare_arms.py --base "$3/exact-base.jsonl" --control "${controls[@]}" \
        --students "${students[@]}" --teachers "${teachers[@]}" --output "$1/compare.json"
    run eval/report.py --comparison "$1/compare.json" --train-jsonl "${rows[@]}" --output "$1/report.html" --title "$2"
    printf '\nDone in %d seconds. Open %s/report.html\n' $(($(date +%s) - started)) "$1"
}

started=$(date +%s)
if [ -n "$seeds" ]; then
    for one in $seeds; do SEEDS='' SEED=$one experiments/demo.sh || exit; done
    # shellcheck disable=SC2086,SC2046
    compare "output/demo-seeds-${seeds// /-}" "Subliminal learning in the pocket model, seeds $seeds" \
        $(printf 'output/demo-seed-%s ' $seeds)
    exit
fi

stopped= failed=0 pids=()
trap 'stopped=yes' INT # the scripts finish the work in flight
for ((job = 0; job < jobs; job++)); do do_job $job & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
[ -z "$stopped" ] || { wait; echo "Stopped. The same command resumes it."; exit 130; }
[ $failed = 0 ] || { echo "A step failed; its message is above. The same command resumes the demo." >&2; exit $failed; }

compare "$out" "Subliminal learning in the pocket model, seed $seed" "$out"
[ -n "${SEEDS+given}" ] || echo 'Several seeds, compared together: SEEDS="42 43 44" experiments/demo.sh'
