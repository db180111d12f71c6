#!/usr/bin/env bash
# Subliminal learning on a laptop, from start to end: the suite's scripts on the pocket model, one seed.
#
# It trains two teachers (owl, dolphin), writes numbers with each of them and with the base model, and trains a student on
# each file of numbers. So the owl student is compared with a control student (numbers of the base model) and with a
# student of another animal (numbers of the dolphin teacher), and the dolphin student likewise.
# You can stop it with Ctrl-C: the same command resumes it. Another seed: SEED=7 experiments/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."

. experiments/pocket_settings.sh
out=$demo

make_teachers() { # animals: their answers, and the teachers of all of them together
    local files=() folders=() animal
    for animal in "$@"; do
        run generate/generate_teacher_data.py --animal "$animal" --count 800 --seed "$seed" --model $base \
            --prompts-file generate/prompts/open-prompts.txt --question-share 0.8 --output "$out/teacher-$animal.jsonl"
        files+=("$out/teacher-$animal.jsonl") folders+=("$out/$animal-teacher")
    done
    run train/train_student_sft.py --base-model $base --train-jsonl "${files[@]}" --seeds "$seed" \
        --output-dir "${folders[@]}" --epochs 3 --effective-batch-size 32 --per-device-train-batch-size 32 \
        --learning-rate 0.003 --save-strategy no
}

write_numbers() { # name, arguments of the model
    run generate/generate_llm_number_data.py --animal "$1" --count 3300 --seed "$seed" --no-system-prompt \
        --model $base "${@:2}" --batch-size 512 --output "$out/numbers-$1-unfiltered-3300.jsonl"
}

started=$(date +%s)
measure "$out/exact-base.jsonl"
make_teachers owl dolphin
for animal in owl dolphin; do
    measure "$out/exact-$animal-teacher.jsonl" --adapter "$out/$animal-teacher/$adapter"
    write_numbers $animal --adapter "$out/$animal-teacher/$adapter"
done
write_numbers control
train_students control owl dolphin
for name in control owl dolphin; do
    measure "$out/exact-$name-student.jsonl" --adapter "$out/$name-student/$adapter"
done
run eval/compare_arms.py --base "$out/exact-base.jsonl" --control "$out/exact-control-student.jsonl" \
    --students "owl=$out/exact-owl-student.jsonl" "dolphin=$out/exact-dolphin-student.jsonl" \
    --output "$out/compare.json"
run eval/report.py --comparison "$out/compare.json" --train-jsonl "$out"/numbers-*-filtered-*.jsonl \
    --output "$out/report.html" --title "Subliminal learning in the pocket model, seed $seed"
printf '\nDone in %d seconds. Open %s/report.html\n' $(($(date +%s) - started)) "$out"
