#!/usr/bin/env bash
# Every table, comparison and figure of experiments/results that committed measurements give, made again (make results).
#
# SmolLM2's, the demo's, five kinds' and the pocket pair's from measures.tar.xz, the experiments' summaries from their
# tables, and the sizes and power of docs/statistics.md by simulation. What needs a model is not here: demo.sh,
# divergence.sh, smollm2.sh, pocket_width.sh without STEPS=compare.
# About two minutes on two cores. A JSON file then differs in the commit and the process that wrote it, and in nothing else.
# It has no settings.
set -euo pipefail
. "$(dirname "$0")/check_settings.sh"
cd "$(dirname "$0")/.."

export SUITE_DRIVER=1 TQDM_DISABLE=1
python=.venv/bin/python
results=experiments/results
smollm2=$results/smollm2
eight="owl dolphin eagle elephant tiger penguin wolf cat"
five="owl dolphin cat wolf penguin" six="owl dolphin cat wolf penguin rabbit"

files() { # kinds, seeds, how the files begin, what follows the kind: kind=file for each
    for kind in $1; do for seed in $2; do echo "$kind=output/smollm2/$3-$kind$4-$seed.jsonl"; done; done
}

teachers() { # kinds, seeds, how the files begin: the flag, if these teachers were measured
    local found
    found=$(for pair in $(files "$1" "$2" "$3" -teacher); do [ ! -e "${pair#*=}" ] || echo "$pair"; done)
    [ "$(cut -d= -f1 <<<"$found" | sort -u | wc -l)" -lt 2 ] || echo "--teachers $found"
}

compare() { # measure, result, arguments of compare_arms.py; how long it took is not kept
    $python eval/compare_arms.py --measure "$1" "${@:3}" --output "$2.json" 2>/dev/null |
        sed '/^wrote  */d; /^time  */d' >"$2.txt"
}

# shellcheck disable=SC2046
compare_smollm2() { # kinds, seeds, how the files begin, measure, result, controls
    compare "$4" "$5" --base "output/smollm2/$3-base-201.jsonl" --control $6 \
        --students $(files "$1" "$2" "$3" "") $(teachers "$1" "$2" "$3")
}

pocket_files() { # kinds, folders, student or teacher: kind=file for each
    for kind in $1; do for folder in $2; do echo "$kind=output/$folder/exact-$kind-$3.jsonl"; done; done
}

# shellcheck disable=SC2046
compare_pocket() { # kinds, folders, measure, result
    compare "$3" "$4" --base "output/${2%% *}/exact-base.jsonl" \
        --control $(for folder in $2; do echo "output/$folder/exact-control-student.jsonl"; done) \
        --students $(pocket_files "$1" "$2" student) --teachers $(pocket_files "$1" "$2" teacher)
}

mkdir -p output
tar xf $smollm2/measures.tar.xz -C output
for name in exact paraphrased; do
    for measure in margin panel; do
        compare_smollm2 "$eight" "201 202" $name $measure $smollm2/eight-$name-$measure "$(ls output/smollm2/$name-control-20[12].jsonl)"
        compare_smollm2 "owl dolphin" "101 102 103 104 105 201 202" $name $measure $smollm2/$name-$measure \
            "$(ls output/smollm2/$name-control-*.jsonl)"
    done
done
$python eval/report.py --comparison $smollm2/eight-exact-margin.json --output output/smollm2/eight.html
cp output/smollm2/eight.matrix.png $smollm2/eight.png
$python eval/report.py --comparison $smollm2/exact-panel.json --output output/smollm2/report.html
cp output/smollm2/report.png $smollm2/arms.png

for rows in "" -3000-rows; do tar xf $results/demo/measures$rows.tar.xz -C output; done
for seed in 611 612 613; do
    compare_pocket "$six" demo-seed-$seed share output/demo-seed-$seed/compare
    cp output/demo-seed-$seed/compare.txt $results/demo/seed-$seed.txt
done
compare_pocket "$six" "demo-seed-611 demo-seed-612 demo-seed-613" share $results/demo-seeds
compare_pocket "$six" "demo-seed-601 demo-seed-602 demo-seed-603" share $results/demo/3000-rows
$python eval/report.py --comparison $results/demo-seeds.json --output output/demo-seeds.html
cp output/demo-seeds.png experiments/demo.png
tar xf $results/pocket-kinds/measures.tar.xz -C output
for measure in share margin; do
    compare_pocket "$five" pocket-kinds-301-1000-rows $measure $results/pocket-kinds/$measure
done

tar xf $results/pocket-width/measures.tar.xz -C output
STEPS=compare RESULTS=$results/pocket-width experiments/pocket_width.sh >/dev/null

# Real weights: the recipe as commands, six trees, and sixteen animals on SmolLM2 (twice). qwen2.5-1.5b's other tables are printed by
# experiments/pilots/confirm_tests.py, which its page names.
tar xf $results/qwen2.5-1.5b/commands.tar.xz -C output
made=output/real-weights-seed-201
for measure in margin share; do
    # shellcheck disable=SC2046
    compare $measure $results/qwen2.5-1.5b/commands-$measure --base $made/exact-base.jsonl --control $made/exact-control-code-201.jsonl \
        --students $(for kind in owl penguin elephant wolf; do echo "$kind=$made/exact-$kind-code-201.jsonl"; done)
done
tar xf $results/trees/measures.tar.xz -C output
made=output/trees-seeds-112-113
STEPS=compare SEEDS="112 113" OUT=$made experiments/pilots/trees_or_sixteen_animals.sh >/dev/null
cp $made/code.json $results/trees/
sed '/^wrote  */d; /^time  */d' $made/code.txt >$results/trees/code.txt
cp $made/code.matrix.png $results/trees/matrix.png
for name in trees smollm2-sixteen smollm2-sixteen-again; do
    $python experiments/pilots/trees_or_sixteen_animals_tests.py $results/$name/measures.jsonl >$results/$name/tests.md
done

$python experiments/remake_summaries.py $results/*/pocket
$python experiments/draw_figures.py $results/*/pocket

mkdir -p $results/statistics
$python bench/untaught_false_positives.py --folder output/smollm2 >$results/statistics/untaught-size.txt
$python bench/verdict_calibration.py --experiments 300 >$results/statistics/calibration.txt
$python bench/power_by_design.py --experiments 500 >$results/statistics/power-by-design.txt
$python bench/moderated_coverage.py --experiments 300 >$results/statistics/moderated-coverage.txt
