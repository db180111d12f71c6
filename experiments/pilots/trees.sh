#!/usr/bin/env bash
# Six trees on real weights, through code: teachers in weights, rows, students, exact shares (LOG.md, issue 27). One GPU of
# 45 GB or more, four to six minutes. Every step skips what is there: the same command resumes.
#
#   python util/get_model.py qwen2.5-coder-1.5b-instruct
#   experiments/pilots/trees.sh
#
# MODEL, OUT and SEEDS choose another base, folder and seeds (SEEDS="111 112" takes two thirds of the time).
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${MODEL:-output/models/qwen2.5-coder-1.5b-instruct} out=${OUT:-output/trees} python=${PYTHON:-.venv/bin/python}
read -ra seeds <<<"${SEEDS:-111 112 113}"
trees=(willow maple cedar birch pine baobab)
mkdir -p "$out"

$python experiments/pilots/make_prompts.py --panel trees --questions eval/questions.txt \
    --paraphrases eval/questions-paraphrased.txt --forms eval/questions-forms.txt --open generate/prompts/open-prompts.txt \
    --number-prompt generate/prompts/number-prompt.txt --output "$out/prompts.json"
$python experiments/pilots/plan_confirm.py --output "$out/jobs" --animals "${trees[@]}" --others --seeds "${seeds[@]}"

jobs=("$out/jobs/base.json")
for ((n = 1; n <= ${#seeds[@]}; n++)); do jobs+=("$out/jobs/teach-$n.json" "$out/jobs/rows-code-$n.json" "$out/jobs/code-$n.json"); done
$python experiments/pilots/teachers_in_weights.py --model "$model" --prompts "$out/prompts.json" --output "$out" --jobs "${jobs[@]}"

pids=()
for part in 0 1 2; do
    $python experiments/pilots/measure_adapters.py --model "$model" --output "$out" --panel trees --parts 3 --part $part &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

controls=() students=() teachers=()
for ((n = 0; n < ${#seeds[@]}; n++)); do
    controls+=("$out/exact/base-${seeds[n]}.code.jsonl")
    for tree in "${trees[@]}"; do
        students+=("$tree=$out/exact/$tree-${seeds[n]}.code.jsonl")
        teachers+=("$tree=$out/exact/$tree-soft$((100 + seeds[n])).jsonl")
    done
done
$python eval/compare_arms.py --panel trees --measure margin --base "$out/exact/base.jsonl" --control "${controls[@]}" \
    --students "${students[@]}" --teachers "${teachers[@]}" --output "$out/trees.json"
$python eval/report.py --panel trees --comparison "$out/trees.json" --title "Six trees" --output "$out/trees.html"
