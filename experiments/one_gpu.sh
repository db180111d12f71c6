#!/usr/bin/env bash
# one_gpu.sh CMD...: waits for a GPU that no other such command has, and runs CMD on it alone. Where a scheduler has
# given out the GPUs already (CUDA_VISIBLE_DEVICES is set) or there is none, CMD just runs.
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
