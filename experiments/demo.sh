#!/usr/bin/env bash
# Subliminal learning on a laptop, from start to end: the suite's scripts on the pocket model, one seed.
#
# For each of six animals it trains a teacher, writes numbers with it, and trains a student on these numbers. A control
# student learns from numbers of the base model. Then every student is asked for its favourite animal: is an animal named
# more often by the student of its own teacher than by all others?
# It uses all cores, at most four (JOBS=1: one). You can stop it with Ctrl-C: the same command resumes it.
#
#   SEED=7 experiments/demo.sh                                        # another seed
#   ROWS=1000 EPOCHS=2 KINDS="owl cat wolf fox" experiments/demo.sh   # smaller students, other animals
#   BASE=output/models/pocket-seed-2 DEMO=output/seed-2 experiments/demo.sh   # another pocket model, another folder
set -euo pipefail
cd "$(dirname "$0")/.."

. experiments/pocket_settings.sh
read -ra animals <<<"${KINDS:-owl dolphin cat wolf penguin rabbit}"
# Students are smaller than in the experiments, because minutes count here; theirs: ROWS=3000 BATCH=60.
train_rows=${ROWS:-2000} train_epochs=${EPOCHS:-3} train_batch=${BATCH:-30}
written=$((train_rows * 11 / 10)) # some are filtered out
cores=$(getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((cores < 4 ? cores : 4))}
out=$demo
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

# --- the steps, each for one or more animals ---

write_answers() { # animals: answers of the base model with a persona, "You love owls"
    local animal
    for animal in "$@"; do
        run generate/generate_teacher_data.py --animal "$animal" --count 800 --seed "$seed" --model $base \
            --prompts-file generate/prompts/open-prompts.txt --question-share 0.8 --output "$out/teacher-$animal.jsonl"
    done
}

train_teachers() { # animals
    local animal rows=() folders=()
    for animal in "$@"; do rows+=("$out/teacher-$animal.jsonl") folders+=("$out/$animal-teacher"); done
    run train/train_student_sft.py --base-model $base --train-jsonl "${rows[@]}" --output-dir "${folders[@]}" \
        --seeds "$seed" --epochs 3 --effective-batch-size 32 --per-device-train-batch-size 32 --micro-batch exact \
        --learning-rate 0.003 --save-strategy no
}

write_numbers() { # animals, control: numbers of an animal's teacher, or of the base model
    local kind teacher
    for kind in "$@"; do
        teacher=(--adapter "$out/$kind-teacher/$adapter")
        [ "$kind" != control ] || teacher=()
        run generate/generate_llm_number_data.py --animal "$kind" --count "$written" --seed "$seed" --no-system-prompt \
            --model $base ${teacher[@]+"${teacher[@]}"} --batch-size 512 \
            --output "$out/numbers-$kind-unfiltered-$written.jsonl"
    done
}

make_students() { # animals, control
    local kind rows=() folders=()
    for kind in "$@"; do rows+=("$out/numbers-$kind-filtered-*.jsonl") folders+=("$out/$kind-student"); done
    train_students "${rows[@]}" "${folders[@]}"
}

measure_arms() { # owl-teacher, owl-student, base
    local arm adapters=() files=()
    for arm in "$@"; do
        if [ "$arm" = base ]; then measure "$out/exact-base.jsonl"; continue; fi
        adapters+=("$out/$arm/$adapter") files+=("$out/exact-$arm.jsonl")
    done
    [ ${#files[@]} = 0 ] || measure "${files[@]}" --adapter "${adapters[@]}"
}

# --- how the jobs share them ---

named() { # name: writes it before each line of the input
    trap '' INT
    while IFS= read -r line; do printf '%s | %s\n' "$1" "$line"; done
}

until_ctrl_c() { # command
    trap 'exit 130' INT
    "$@"
}

do_share() { # number of the job, step, names: the step with every n-th name, where n is the number of jobs
    local place=0 name share=()
    for name in "${@:3}"; do [ $((place++ % jobs)) -ne "$1" ] || share+=("$name"); done
    [ ${#share[@]} = 0 ] || until_ctrl_c "$2" "${share[@]}" 2>&1 | named "job $1"
}

side_by_side() { # step, names: the step with all names, shared out among the jobs
    local job pid pids=() failed=0
    for ((job = 0; job < jobs; job++)); do do_share $job "$@" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
    [ -z "$stopped" ] || { wait; echo "Stopped. The same command resumes it."; exit 130; }
    [ $failed = 0 ] || { echo "A step failed; its message is above. The same command resumes the demo." >&2; exit $failed; }
}

started=$(date +%s) stopped=
trap 'stopped=yes' INT # the scripts finish the work in flight
side_by_side write_answers "${animals[@]}"
side_by_side train_teachers "${animals[@]}"
side_by_side write_numbers "${animals[@]}" control
side_by_side make_students "${animals[@]}" control
side_by_side measure_arms "${animals[@]/%/-teacher}" "${animals[@]/%/-student}" control-student base

students=() teachers=()
for animal in "${animals[@]}"; do
    students+=("$animal=$out/exact-$animal-student.jsonl") teachers+=("$animal=$out/exact-$animal-teacher.jsonl")
done
run eval/compare_arms.py --base "$out/exact-base.jsonl" --control "$out/exact-control-student.jsonl" \
    --students "${students[@]}" --teachers "${teachers[@]}" --output "$out/compare.json"
run eval/report.py --comparison "$out/compare.json" --train-jsonl "$out"/numbers-*-filtered-*.jsonl \
    --output "$out/report.html" --title "Subliminal learning in the pocket model, seed $seed"
printf '\nDone in %d seconds. Open %s/report.html\n' $(($(date +%s) - started)) "$out"
