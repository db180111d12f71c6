#!/usr/bin/env bash
# Audits of SmolLM2's number rows on fresh seeds, against students of other seeds (plan and bar: LOG.md). One GPU.
#
# For each seed: eight teachers, their numbers and the base model's (recipe of experiments/smollm2.sh), and the audit of
# each file with the control of its seed. The same command resumes.
#
#   python util/get_model.py smollm2-135m-instruct
#   SEEDS="302 303" JOBS=3 experiments/data_signal/smollm2_audits.sh
#
# Settings are variables before the command (in brackets what they are without):
#   ANIMALS   what teachers are taught (owl dolphin eagle elephant tiger penguin wolf cat)
#   SEEDS     a teacher of each animal, and its rows, for each seed (302 303)
#   JOBS      processes side by side (2)
#   ROWS      rows of a file that are read, at most (8160)
#   BATCH     rows of one pass through the model (120)
#   BASE      folder or hub id of the model (output/models/smollm2-135m-instruct)
#   OUT       folder of teachers and rows (output/smollm2-audits)
#   AUDITS    folder of the audits (as OUT)
set -euo pipefail
. "$(dirname "$0")/../check_settings.sh"
cd "$(dirname "$0")/../.."

export BASE=${BASE:-output/models/smollm2-135m-instruct} OUT=${OUT:-output/smollm2-audits} TQDM_DISABLE=1 SUITE_DRIVER=1
export ANIMALS=${ANIMALS:-owl dolphin eagle elephant tiger penguin wolf cat} JOBS=${JOBS:-2}
export most_rows=${ROWS:-8160} rows_a_pass=${BATCH:-120}
python=.venv/bin/python audits=${AUDITS:-$OUT}
# shellcheck disable=SC2086
{ counts_are ROWS "$most_rows"; counts_are BATCH "$rows_a_pass"; seeds_are SEEDS ${SEEDS:-}; once SEEDS ${SEEDS:-}; }
mkdir -p "$audits"

audit() { # kind, seed
    [ -e "$audits/audit-$1-$2.json" ] || # shellcheck disable=SC2086
        $python eval/audit_data.py --base-model "$BASE" --max-rows "$most_rows" --batch-size "$rows_a_pass" \
            --train-jsonl $OUT/numbers-"$1"-"$2"-filtered-*.jsonl --reference $OUT/numbers-control-"$2"-filtered-*.jsonl \
            --output "$audits/audit-$1-$2.html" >"$OUT/log-audit-$1-$2.txt" 2>&1 ||
        { echo "failed: audit $1 $2" >&2; tail -n 3 "$OUT/log-audit-$1-$2.txt" >&2; exit 1; }
}
export -f audit
export python audits

for seed in ${SEEDS:-302 303}; do
    SEEDS=$seed STEPS="teacher numbers" experiments/smollm2.sh
    # shellcheck disable=SC2086
    printf '%s\n' $ANIMALS | xargs -P "$JOBS" -I{} bash -c "set -euo pipefail; audit {} $seed"
    echo "audits of seed $seed done after $SECONDS s"
    [ -d output/smollm2 ] || tar xf experiments/results/smollm2/measures.tar.xz -C output
    $python experiments/data_signal/judge_smollm2.py --audits "$audits"/audit-*.json \
        --output "$audits/judged.json" | tee "$audits/judged.txt"
done
