#!/usr/bin/env bash
# The whole validation of the data audit on the pocket model (plan in LOG.md), on N processor cores; about two core hours.
# Finished parts are kept: the same command resumes.
#
#   JOBS=16 experiments/data_signal/validate_pocket.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

jobs=${JOBS:-2}
export parts=${PARTS:-output/signal} jobs OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" TQDM_DISABLE=1

make_parts() { # step
    seq 0 $((jobs - 1)) | xargs -P "$jobs" -I{} .venv/bin/python experiments/data_signal/pocket_sets.py --step "$1" \
        --shard {} "$jobs" --output-dir "$parts"
}

.venv/bin/python experiments/data_signal/pocket_sets.py --step controls --output-dir "$parts" # and the reference, once
for step in taught null shuffled cut students baselines; do make_parts $step; done
.venv/bin/python experiments/data_signal/judge_audit.py --parts "$parts" \
    --output experiments/results/data_signal/audit.json | tee experiments/results/data_signal/audit.txt
