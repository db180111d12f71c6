#!/usr/bin/env bash
# Do single digits carry less than whole numbers? Two pairs of pocket models, the two of a pair alike but for the tokenizer.
#
# It makes the four models (two minutes each on a GPU), runs demo.sh with ten kinds on each (7 to 10 minutes on four cores),
# measures how far each teacher moves its rows (two minutes a model), and compares. The plan is in LOG.md, "the pocket
# pair by width". The same command resumes it.
#
# Settings are variables before the command (in brackets what they are without):
#   STEPS     compare: the last step alone (all)
#   RESULTS   folder of the tables and the figure (output/width)
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

export KINDS="owl dolphin cat wolf penguin rabbit eagle fox elephant panda" SUITE_DRIVER=1 OMP_NUM_THREADS=1
python=.venv/bin/python
results=${RESULTS:-output/width}
one_of STEPS compare ${STEPS:+"$STEPS"}
mkdir -p "$results"

make_model() { # whole or digits, seed
    local digits=()
    [ "$1" = whole ] || digits=(--digits)
    [ -e "output/models/width-$1-$2/manifest.json" ] ||
        $python pocket/make_pocket.py --seed "$2" ${digits[@]+"${digits[@]}"} --output-dir "output/models/width-$1-$2"
}

meters() { # whole or digits, seed: a command for each teacher
    local kind made=output/width-$1-$2
    for kind in $KINDS; do
        [ -e "$made/meter-$kind.json" ] ||
            echo eval/signal_meter.py --train-jsonl "$made"/numbers-"$kind"-filtered-*.jsonl --animal "$kind" --max-rows 200 \
                --base-model "output/models/width-$1-$2" --teacher "$made/$kind-teacher/seed-70$2/final" \
                --output "$made/meter-$kind.json"
    done
}

compare() { # whole or digits, seed, measure, result
    local made=output/width-$1-$2 kind students=() teachers=()
    for kind in $KINDS; do
        students+=("$kind=$made/exact-$kind-student.jsonl") teachers+=("$kind=$made/exact-$kind-teacher.jsonl")
    done
    $python eval/compare_arms.py --measure "$3" --base "$made/exact-base.jsonl" --control "$made/exact-control-student.jsonl" \
        --students "${students[@]}" --teachers "${teachers[@]}" --output "$made$4.json" 2>/dev/null |
        sed '/^wrote  */d; /^time  */d' >"$results/$1-$2$4.txt"
}

for seed in 11 12; do
    for tokenizer in whole digits; do
        if [ "${STEPS:-}" != compare ]; then
            make_model $tokenizer $seed
            ROWS=3000 BATCH=60 BASE=output/models/width-$tokenizer-$seed DEMO=output/width-$tokenizer-$seed SEED=70$seed \
                experiments/demo.sh
            meters $tokenizer $seed | $python experiments/one_process.py
        fi
        compare $tokenizer $seed margin ""
        compare $tokenizer $seed share -share
    done
done

{
    for seeds in 11 12 "11 12"; do
        whole=() digits=()
        for seed in $seeds; do whole+=("output/width-whole-$seed.json") digits+=("output/width-digits-$seed.json"); done
        $python experiments/pilots/own_less_others.py "${whole[@]}" --less "${digits[@]}"
        echo
    done
    $python experiments/pilots/pocket_width.py output/width-{whole,digits}-{11,12} --figure "$results/kinds.png"
} >"$results/tables.md"
cat "$results/tables.md"
