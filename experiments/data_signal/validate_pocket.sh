#!/usr/bin/env bash
# The whole validation of the data audit on the pocket model (plan in LOG.md), on JOBS processor cores; about two core
# hours. Finished parts are kept: the same command resumes. Tables are made from the parts that there are.
#
#   JOBS=16 experiments/data_signal/validate_pocket.sh
#
# Settings are variables before the command (in brackets what they are without):
#   JOBS     processes side by side (2)
#   PARTS    folder of the finished parts (output/signal)
#   JUDGED   file of the result (experiments/results/data_signal/audit.json)
#   PYTHON   the Python that runs it (.venv/bin/python)
set -euo pipefail
. "$(dirname "$0")/../check_settings.sh"
cd "$(dirname "$0")/../.."

jobs=${JOBS:-2} parts=${PARTS:-output/signal} python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="" TQDM_DISABLE=1 HF_HUB_OFFLINE=1
counts_are JOBS "$jobs"
steps=(controls taught null students shuffled cut baselines)

failed=0
seq "$jobs" | xargs -P "$jobs" -I{} "$python" experiments/data_signal/pocket_sets.py \
    "${steps[@]/#/--step=}" --output-dir "$parts" || failed=1
"$python" experiments/data_signal/judge_audit.py --parts "$parts" \
    --output "${JUDGED:-experiments/results/data_signal/audit.json}" | tee "$parts/audit.txt"
exit $failed
