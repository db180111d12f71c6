#!/usr/bin/env bash
# Runs a command on one GPU that no other such command uses, and waits for a free one: run_on_a_free_gpu.sh COMMAND...
# If a scheduler has already assigned GPUs (CUDA_VISIBLE_DEVICES is set), or if there is no GPU, the command simply runs.
set -euo pipefail
if [ -n "${CUDA_VISIBLE_DEVICES-}" ] || ! gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null); then
    exec "$@"
fi
locks=${TMPDIR:-/tmp}/one-gpu-$(id -u)
mkdir -p "$locks"
while :; do
    for gpu in $gpus; do
        exec 9>"$locks/$gpu"
        if flock -n 9; then CUDA_VISIBLE_DEVICES=$gpu exec "$@"; fi
    done
    sleep 1
done
