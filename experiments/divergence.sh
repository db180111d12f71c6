#!/usr/bin/env bash
# Which tokens carry the preference? Students are trained on the demo's numbers, but on some of their tokens only.
#
# For each animal, the demo's number rows are scored token by token with the animal's teacher. Then students are trained on
# all tokens of the answers, on the divergence tokens only, on all other tokens, and on two controls: as many other tokens
# of the same kinds, and all tokens but so many. These arms have the same rows, updates and seeds. Three more arms keep half
# of the rows: those with the most divergence tokens, those with the fewest, and random ones.
# It needs the demo of the same seed: ROWS=3000 BATCH=60 SEED=7 experiments/demo.sh, then SEED=7 experiments/divergence.sh
#
# Settings are variables before the command (in brackets what they are without):
#   SEED          seed of the demo and of the students (42)
#   ANIMALS       animals of the demo, whose rows are used (owl dolphin)
#   DEFINITIONS   what a divergence token is: schrodi, pair, gap (schrodi gap); eval/divergence/which_tokens_diverge.py
#                 explains them
#   ARMS          which tokens are trained on (only random without all-but-random): the divergence tokens, as many others
#                 of the same kinds, all but the divergence tokens, all but as many others
#   ROWS          which half of the rows (rich poor random): those with most divergence tokens, with fewest, any
#   BASE          folder of the model (pocket/model)
#   DEMO          folder of the finished demo (output/demo-seed-SEED)
# ARMS="" and ROWS="" leave these students out.
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

. experiments/pocket_settings.sh
definitions=${DEFINITIONS-schrodi gap}
animals=${ANIMALS-owl dolphin}
arms=${ARMS-only random without all-but-random}
rows=${ROWS-rich poor random}
# shellcheck disable=SC2086
{ one_of DEFINITIONS "schrodi pair gap" $definitions; one_of ARMS "only random without all-but-random" $arms
  one_of ROWS "rich poor random" $rows; once ANIMALS $animals; once DEFINITIONS $definitions; }
out=output/divergence-seed-$seed
needs_demo
mkdir -p "$out"

measure_tokens() { # animal, other animal
    run eval/divergence/divergence_tokens.py --train-jsonl "$demo"/numbers-"$1"-filtered-*.jsonl --base-model $base \
        --teacher "$demo/$1-teacher/$adapter" --counterfactual "$demo/$2-teacher/$adapter" lion wolf eagle \
        --student "$demo/$1-student/$adapter" --output "$out/tokens-$1.jsonl"
}

train_arm() { # animal, definition, name of the arm, its arguments
    local name=$1-$3
    run generate/ablations/select_by_divergence.py --train-jsonl "$demo"/numbers-"$1"-filtered-*.jsonl \
        --divergence "$out/tokens-$1.jsonl" --definition "$2" "${@:4}" --seed "$seed" --output "$out/numbers-$name.jsonl"
    train_student "$out/numbers-$name.jsonl" "$out/$name"
    measure "$out/exact-$name.jsonl" --adapter "$out/$name/$adapter"
}

measure "$out/exact-base.jsonl"
for animal in $animals; do
    other=owl
    [ "$animal" = owl ] && other=dolphin
    measure_tokens "$animal" $other
    train_arm "$animal" gap all --mask all
    for definition in $definitions; do
        for mask in $arms; do train_arm "$animal" "$definition" "$definition-$mask" --mask "$mask"; done
    done
    for how in $rows; do train_arm "$animal" gap "gap-rows-$how" --which-rows "$how" --kept-share 0.5; done
done
