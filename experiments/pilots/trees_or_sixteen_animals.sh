#!/usr/bin/env bash
# Six trees on real weights, through code: teachers in weights, rows, students, exact shares (plan in LOG.md, "six
# trees"). One GPU of 45 GB or more; two seeds of trees took 649 s of an H200 that other jobs used too. Every step skips
# what is there: the same command resumes.
#
#   python util/get_model.py qwen2.5-coder-1.5b-instruct
#   experiments/pilots/trees_or_sixteen_animals.sh
#
# The same for sixteen animals on SmolLM2-135M, through text and code:
#
#   python util/get_model.py smollm2-135m-instruct
#   KINDS=sixteen experiments/pilots/trees_or_sixteen_animals.sh
#
# Settings are variables before the command (in brackets what they are without):
#   KINDS    trees or sixteen (trees); what follows in brackets is for trees, then for sixteen
#   MODEL    folder or hub id of the base model (output/models/qwen2.5-coder-1.5b-instruct, output/models/smollm2-135m-instruct)
#   SEEDS    a teacher and a student of each kind for each seed (111 112 113, 131); two take two thirds of the time
#   STEPS    compare: only what the measures give (all)
#   BATCH    answers made together (3072); fewer take less memory
#   TOKENS   tokens of one training pass, padding counted in (12000); fewer take less memory
#   OUT      the output folder (output/trees, output/sixteen)
#   PYTHON   the Python that runs it (.venv/bin/python)
set -euo pipefail
. "$(dirname "$0")/../check_settings.sh"
cd "$(dirname "$0")/../.."
trees="willow maple cedar birch pine baobab"
sixteen="owl penguin elephant wolf fox whale giraffe rabbit eagle cat dolphin panda dog lion tiger koala"
case ${KINDS:-trees} in
trees) kinds=$trees panel=trees base=qwen2.5-coder-1.5b-instruct seeds="111 112 113" channels=code layer=24 ;;
sixteen) kinds=$sixteen panel=animals base=smollm2-135m-instruct seeds=131 channels="text code" layer= ;;
*) one_of KINDS "trees sixteen" "$KINDS" ;;
esac
model=${MODEL:-output/models/$base} out=${OUT:-output/${KINDS:-trees}} python=${PYTHON:-.venv/bin/python}
read -ra kinds <<<"$kinds"
read -ra seeds <<<"${SEEDS:-$seeds}"
seeds_are SEEDS "${seeds[@]}"
batch=${BATCH:-3072} tokens=${TOKENS:-12000}
counts_are BATCH "$batch"
counts_are TOKENS "$tokens"
one_of STEPS compare ${STEPS:+"$STEPS"}
mkdir -p "$out"

run() { # everything that needs the model
    local words=() strength=1 jobs=() n channel list
    [ $panel = animals ] || words=(--panel $panel)
    $python experiments/pilots/make_prompts.py ${words[@]+"${words[@]}"} --questions eval/questions.txt \
        --paraphrases eval/questions-paraphrased.txt --forms eval/questions-forms.txt --open generate/prompts/open-prompts.txt \
        --number-prompt generate/prompts/number-prompt.txt --output "$out/prompts.json"
    if [ -z "$layer" ]; then # of a base that was never steered before
        $python experiments/pilots/choose_layer.py --model "$model" --prompts "$out/prompts.json" --kinds "${kinds[@]:0:8}" \
            --output "$out"
        read -r layer strength <"$out/choice.txt"
    fi
    $python experiments/pilots/plan_confirm.py --output "$out/jobs" --animals "${kinds[@]}" --others --seeds "${seeds[@]}" \
        --strength "$strength"

    for ((n = 1; n <= ${#seeds[@]}; n++)); do
        for channel in $channels; do
            for list in base "teach-$n" "rows-$channel-$n" "$channel-$n"; do jobs+=("$out/jobs/$list.json"); done
            $python experiments/pilots/teachers_in_weights.py --model "$model" --layer $layer --prompts "$out/prompts.json" \
                --batch "$batch" --tokens "$tokens" --output "$out" --jobs "${jobs[@]}"
            measure # after each seed and channel: a machine may be lost before the last
        done
    done
}

measure() { # the exact measures that are missing, by three processes
    local part pid pids=()
    for part in 0 1 2; do
        $python experiments/pilots/measure_adapters.py --model "$model" --output "$out" --panel $panel --parts 3 --part $part &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || echo "a measure failed; the same command makes it again" >&2; done
}

if [ "${STEPS:-}" != compare ]; then run; fi # STEPS=compare: only what measures give

for channel in $channels; do
    controls=() students=() teachers=()
    for seed in "${seeds[@]}"; do
        controls+=("$out/exact/base-$seed.$channel.jsonl")
        for kind in "${kinds[@]}"; do
            students+=("$kind=$out/exact/$kind-$seed.$channel.jsonl")
            teachers+=("$kind=$out/exact/$kind-soft$((100 + seed)).jsonl")
        done
    done
    $python eval/compare_arms.py --panel $panel --measure margin --base "$out/exact/base.jsonl" --control "${controls[@]}" \
        --students "${students[@]}" --teachers "${teachers[@]}" --output "$out/$channel.json" | tee "$out/$channel.txt"
    $python eval/report.py --panel $panel --comparison "$out/$channel.json" --title "${KINDS:-trees}, $channel" \
        --output "$out/$channel.html"
done
