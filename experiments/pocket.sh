# What the pocket model's scripts share (sourced, from the suite's folder): names, the students' recipe, the measure.
# shellcheck shell=bash disable=SC2034
python=.venv/bin/python
base=pocket/model
seed=${SEED:-42}
adapter=seed-$seed/final
demo=output/demo-seed-$seed

run() { printf '\n$ python %s\n' "$*"; "$python" "$@"; }

needs_demo() { [ -e "$demo/exact-owl-student.jsonl" ] || { echo "no $demo: run SEED=$seed experiments/demo.sh first" >&2; exit 1; }; }

train_student() { # numbers (a glob), folder
    run train/train_student_sft.py --base-model $base --train-jsonl "$1" --max-train-samples 3000 --seeds "$seed" \
        --output-dir "$2" --epochs 3 --effective-batch-size 60 --per-device-train-batch-size 60 --learning-rate 0.005 \
        --save-strategy no
}

measure() { # file, arguments of the model: the exact share of every animal, no sampling noise
    run eval/eval.py --model $base "${@:2}" --exact --output "$1"
}
