#!/usr/bin/env bash
# Runs a command on one GPU that no other such command uses, and waits for a free one: run_on_a_free_gpu.sh COMMAND...
# If a scheduler has assigned one GPU (CUDA_VISIBLE_DEVICES names it), or if there is no GPU, the command simply runs.
set -euo pipefail
mapfile -t gpus < <("$(dirname "$0")/../util/list_allowed_gpus.sh")
if [ ${#gpus[@]} = 0 ] || { [ ${#gpus[@]} = 1 ] && [ -n "${CUDA_VISIBLE_DEVICES-}" ]; }; then exec "$@"; fi
# Two jobs of a scheduler may see different GPUs under the same names: each job has locks of its own.
locks=${TMPDIR:-/tmp}/one-gpu-$(id -u)${SLURM_JOB_ID:+-$SLURM_JOB_ID}
mkdir -p "$locks"
while :; do
    for gpu in "${gpus[@]}"; do
        exec 9>"$locks/${gpu//\//_}"
        if flock -n 9; then CUDA_VISIBLE_DEVICES=$gpu exec "$@"; fi
    done
    sleep 1
done
