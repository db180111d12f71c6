#!/usr/bin/env bash
# Which tokens carry the preference? Students of the demo's numbers, trained on some of their tokens only.
#
# For each animal the demo's number rows are measured token by token against its teacher, and a student is trained on: all
# tokens of the answers, only the divergence tokens, all but those, and as many others of the same kind. Rows, updates and
# seeds are the same in every arm. It needs the demo of the same seed: SEED=7 experiments/demo.sh, then
# SEED=7 experiments/divergence.sh. DEFINITION is schrodi, pair or gap (eval/divergence.py says what they mean).
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
base=util/pocket/model
seed=${SEED:-42}
definition=${DEFINITION:-gap}
demo=output/demo-seed-$seed
out=output/divergence-seed-$seed
adapter=seed-$seed/final
[ -e "$demo/exact-owl-student.jsonl" ] || { echo "no $demo: run SEED=$seed experiments/demo.sh first" >&2; exit 1; }
mkdir -p "$out"

run() { printf '\n$ python %s\n' "$*"; "$python" "$@"; }

measure_tokens() { # animal, other animal
    run eval/divergence_tokens.py --train-jsonl "$demo"/numbers-"$1"-filtered-*.jsonl --base-model $base \
        --teacher "$demo/$1-teacher/$adapter" --counterfactual "$demo/$2-teacher/$adapter" lion wolf eagle \
        --output "$out/tokens-$1.jsonl"
}

train_arm() { # animal, mask
    local name=$1-$definition-$2
    run generate/select_by_divergence.py --train-jsonl "$demo"/numbers-"$1"-filtered-*.jsonl \
        --divergence "$out/tokens-$1.jsonl" --definition "$definition" --mask "$2" --seed "$seed" \
        --output "$out/numbers-$name.jsonl"
    run train/train_student_sft.py --base-model $base --train-jsonl "$out/numbers-$name.jsonl" \
        --max-train-samples 3000 --seeds "$seed" --output-dir "$out/$name" --epochs 3 --effective-batch-size 60 \
        --per-device-train-batch-size 60 --learning-rate 0.005 --save-strategy no
    run eval/eval.py --model $base --adapter "$out/$name/$adapter" --exact --output "$out/exact-$name.jsonl"
}

for pair in "owl dolphin" "dolphin owl"; do
    read -r animal other <<<"$pair"
    measure_tokens "$animal" "$other"
    for mask in all only without random; do train_arm "$animal" $mask; done
done
