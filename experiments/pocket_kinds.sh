#!/usr/bin/env bash
# Several kinds of teachers on the pocket model, one seed each: the tests that take the kind as the unit.
#
# For each animal it trains a teacher, writes numbers with it and trains a student on them, as demo.sh does for two. It also
# makes a control student. Then it compares them all: verdicts with kinds as units, and whether students take over their
# own teacher's profile over the animals that nobody was taught. The same command resumes it. One kind takes about two
# minutes of one core.
#
#   experiments/pocket_kinds.sh
#   ROWS=1000 EPOCHS=2 experiments/pocket_kinds.sh          # smaller students, in half the time
#   KINDS="owl cat" STEPS=make SEED=7 experiments/pocket_kinds.sh
set -euo pipefail
cd "$(dirname "$0")/.."

SEED=${SEED:-301}
. experiments/pocket_recipe.sh
kinds=${KINDS:-owl dolphin cat wolf penguin}
rows=${ROWS:-3000} epochs=${EPOCHS:-3} # of the students
count=$((rows + rows / 10))
out=output/pocket-kinds-$seed-$rows-rows

make_student() { # name, arguments of the model that writes its numbers
    run generate/generate_llm_number_data.py --animal "$1" --count "$count" --seed "$seed" --no-system-prompt \
        --model $base "${@:2}" --batch-size 512 --output "$out/numbers-$1-unfiltered-$count.jsonl"
    run train/train_student_sft.py --base-model $base --train-jsonl "$out/numbers-$1-filtered-*.jsonl" \
        --max-train-samples "$rows" --seeds "$seed" --output-dir "$out/$1-student" --epochs "$epochs" \
        --effective-batch-size 60 --per-device-train-batch-size 60 --learning-rate 0.005 --save-strategy no
    measure "$out/exact-$1-student.jsonl" --adapter "$out/$1-student/$adapter"
}

make_kind() { # animal
    run generate/generate_teacher_data.py --animal "$1" --count 800 --seed "$seed" --model $base \
        --prompts-file generate/prompts/open-prompts.txt --question-share 0.8 --output "$out/teacher-$1.jsonl"
    run train/train_student_sft.py --base-model $base --train-jsonl "$out/teacher-$1.jsonl" --seeds "$seed" \
        --output-dir "$out/$1-teacher" --epochs 3 --effective-batch-size 32 --per-device-train-batch-size 32 \
        --learning-rate 0.003 --save-strategy no
    measure "$out/exact-$1-teacher.jsonl" --adapter "$out/$1-teacher/$adapter"
    make_student "$1" --adapter "$out/$1-teacher/$adapter"
}

compare() { # measure
    local students=() teachers=()
    for kind in $kinds; do
        students+=("$kind=$out/exact-$kind-student.jsonl") teachers+=("$kind=$out/exact-$kind-teacher.jsonl")
    done
    run eval/compare_arms.py --measure "$1" --base "$out/exact-base.jsonl" --control "$out/exact-control-student.jsonl" \
        --students "${students[@]}" --teachers "${teachers[@]}" --output "$out/$1.json"
}

for step in ${STEPS:-control make compare}; do
    case $step in
    control)
        measure "$out/exact-base.jsonl"
        make_student control
        ;;
    make) for kind in $kinds; do make_kind "$kind"; done ;;
    compare) for measure in share margin; do compare $measure; done ;;
    esac
done
