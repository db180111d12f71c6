#!/usr/bin/env bash
# Two kinds of teachers: the base model with a persona in its system prompt, and a trained teacher without system prompt.
# Whose numbers differ more from what others would write, and whose numbers pass on more of the preference?
#
# For each animal it writes the persona's numbers, finds the divergence tokens in both kinds of numbers (with the same
# counterfactuals: personas of the other animal, lion, wolf and eagle), and trains a student on the persona's numbers, by
# the demo's recipe. The student never sees the persona.
# It needs the demo of the same seed: ROWS=3000 BATCH=60 SEED=7 experiments/demo.sh, then SEED=7 experiments/persona_against_trained_teacher.sh
#
# Settings are variables before the command (in brackets what they are without):
#   SEED   seed of the demo, of the persona's numbers and of the students (42)
#   BASE   folder of the model (pocket/model)
#   DEMO   folder of the finished demo (output/demo-seed-SEED)
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

. experiments/pocket_settings.sh
out=output/persona-seed-$seed
needs_demo
mkdir -p "$out"

measure_tokens() { # name, numbers, teacher, other animal
    run eval/divergence/divergence_tokens.py --train-jsonl "$2" --max-rows 1000 --base-model $base --teacher "$3" \
        --counterfactual "$4" lion wolf eagle --output "$out/tokens-$1.jsonl"
}

for animal in owl dolphin; do
    other=owl
    [ "$animal" = owl ] && other=dolphin
    run generate/generate_llm_number_data.py --animal $animal --count 4000 --seed "$seed" --model $base \
        --batch-size 512 --output "$out/numbers-$animal-unfiltered-4000.jsonl"
    measure_tokens "trained-$animal" "$demo"/numbers-$animal-filtered-*.jsonl "$demo/$animal-teacher/$adapter" $other
    measure_tokens "persona-$animal" "$out"/numbers-$animal-filtered-*.jsonl $animal $other
    train_student "$out/numbers-$animal-filtered-*.jsonl" "$out/$animal-student"
    measure "$out/exact-$animal-student.jsonl" --adapter "$out/$animal-student/$adapter"
done
