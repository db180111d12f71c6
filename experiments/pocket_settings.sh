# What demo.sh, divergence.sh and persona_against_trained_teacher.sh share: names, the students' training recipe, the measure. They source this file.
# shellcheck shell=bash disable=SC2034
python=.venv/bin/python
base=${BASE:-pocket/model}
seed=${SEED:-42}
seeds_are SEED "$seed"
adapter=seed-$seed/final
demo=${DEMO:-output/demo-seed-$seed}
train_rows=3000 train_epochs=3 train_batch=60 # of a student
export SUITE_DRIVER=1 # the scripts print no `next:` lines

# A demo that was started before 2026-11-29 has the model's older path in its manifests, and is resumed under that name.
grep -qs '"util/pocket/model"' "$demo/exact-base.jsonl.manifest.json" && base=util/pocket/model

run() { printf '\n$ python'; printf ' %q' "$@"; echo; "$python" "$@"; }

needs_demo() { [ -e "$demo/exact-owl-student.jsonl" ] || { echo "$demo is not there or not finished; run first: ROWS=3000 BATCH=60 SEED=$seed experiments/demo.sh" >&2; exit 1; }; }

train_student() { # numbers (a glob), folder
    run train/train_student_sft.py --base-model $base --train-jsonl "$1" --max-train-samples "$train_rows" --seeds "$seed" \
        --output-dir "$2" --epochs "$train_epochs" --effective-batch-size "$train_batch" \
        --per-device-train-batch-size "$train_batch" --learning-rate 0.005 --save-strategy no
}

measure() { # file, arguments of the model: the exact share of every animal, without sampling noise
    run eval/eval.py --model $base "${@:2}" --exact --output "$1"
}
