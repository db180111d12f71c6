#!/usr/bin/env bash
# Several kinds of teachers on the pocket model, one seed each: the tests that take the kind as the unit.
#
# For each animal it trains a teacher, writes numbers with it and trains a student on them, as demo.sh does for two; all
# teachers are trained together, and all students. It also makes a control student. Then it compares them all: verdicts
# with kinds as units, and whether students take over their own teacher's profile over the animals that nobody was taught.
# The same command resumes it.
#
#   experiments/pocket_kinds.sh
#   ROWS=1000 EPOCHS=2 experiments/pocket_kinds.sh      # smaller students, in half the time
set -euo pipefail
cd "$(dirname "$0")/.."

SEED=${SEED:-301}
. experiments/pocket_settings.sh
kinds=${KINDS:-owl dolphin cat wolf penguin}
rows=${ROWS:-3000} epochs=${EPOCHS:-3} # of the students
count=$((rows + rows / 10))
out=output/pocket-kinds-$seed-$rows-rows

train_all() { # rows of each adapter (globs), then --, then their folders, then --, then the recipe
    local files=() folders=()
    while [ "$1" != -- ]; do files+=("$1"); shift; done; shift
    while [ "$1" != -- ]; do folders+=("$1"); shift; done; shift
    run train/train_student_sft.py --base-model $base --train-jsonl "${files[@]}" --output-dir "${folders[@]}" \
        --seeds "$seed" --save-strategy no "$@"
}

make_teachers() {
    for kind in $kinds; do
        run generate/generate_teacher_data.py --animal "$kind" --count 800 --seed "$seed" --model $base \
            --prompts-file generate/prompts/open-prompts.txt --question-share 0.8 --output "$out/teacher-$kind.jsonl"
    done
    # shellcheck disable=SC2086
    train_all $(printf "$out/teacher-%s.jsonl " $kinds) -- $(printf "$out/%s-teacher " $kinds) -- --epochs 3 \
        --effective-batch-size 32 --per-device-train-batch-size 32 --learning-rate 0.003
    for kind in $kinds; do measure "$out/exact-$kind-teacher.jsonl" --adapter "$out/$kind-teacher/$adapter"; done
}

write_numbers() {
    for kind in control $kinds; do
        local teacher=()
        [ "$kind" = control ] || teacher=(--adapter "$out/$kind-teacher/$adapter")
        run generate/generate_llm_number_data.py --animal "$kind" --count "$count" --seed "$seed" --no-system-prompt \
            --model $base "${teacher[@]}" --batch-size 512 --output "$out/numbers-$kind-unfiltered-$count.jsonl"
    done
}

make_students() {
    set -f # the globs are the training script's
    # shellcheck disable=SC2086
    train_all $(printf "$out/numbers-%s-filtered-*.jsonl " control $kinds) -- \
        $(printf "$out/%s-student " control $kinds) -- --max-train-samples "$rows" --epochs "$epochs" \
        --effective-batch-size 60 --per-device-train-batch-size 60 --learning-rate 0.005
    set +f
    for kind in control $kinds; do measure "$out/exact-$kind-student.jsonl" --adapter "$out/$kind-student/$adapter"; done
}

compare() { # measure
    local students=() teachers=()
    for kind in $kinds; do
        students+=("$kind=$out/exact-$kind-student.jsonl") teachers+=("$kind=$out/exact-$kind-teacher.jsonl")
    done
    run eval/compare_arms.py --measure "$1" --base "$out/exact-base.jsonl" --control "$out/exact-control-student.jsonl" \
        --students "${students[@]}" --teachers "${teachers[@]}" --output "$out/$1.json"
}

measure "$out/exact-base.jsonl"
for step in ${STEPS:-make_teachers write_numbers make_students}; do $step; done
for measure in share margin; do compare $measure; done
