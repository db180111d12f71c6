#!/usr/bin/env bash
# The README's steps 1 to 6 and the agreement of the backends, on a GPU machine without network:
# bench/gpu_box/phases.sh ENVIRONMENT MODEL_FOLDER OUTPUT_FOLDER [vllm serve flags]. NUMBERS=800 writes fewer numbers. All
# output is also in OUTPUT_FOLDER/phases.log.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=$1/bin/python model=$2
mkdir -p "$3" && output=$(cd "$3" && pwd)
shift 3
export PATH="$(dirname "$python"):$PATH" PYTHONUNBUFFERED=1 VLLM_NO_USAGE_STATS=1 VLLM_USE_FLASHINFER_SAMPLER=0 WANDB_MODE=offline
exec > >(tee -a "$output/phases.log") 2>&1

part() { # part NAME COMMAND...: runs it, and says how long it took and how it ended
    local name=$1 begun=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: exit code $?, $((SECONDS - begun)) s"
}

"$python" tests/fake_hub.py --folder "$output/hub" > "$output/hub-port" &
hub=$!
trap 'kill $hub' EXIT
until [ -s "$output/hub-port" ]; do sleep 0.2; done
export HF_ENDPOINT=http://127.0.0.1:$(cat "$output/hub-port") HF_TOKEN=hf_fake

part nvidia-smi sh -c "nvidia-smi; nvidia-smi -L; nvidia-smi --query-gpu=driver_version,memory.total,memory.free,compute_cap,name --format=csv,noheader"
part doctor "$python" util/doctor.py
part "README steps" "$python" bench/readme_phases.py --model "$model" --output-dir "$output/run" --push \
    ${NUMBERS:+--numbers "$NUMBERS"} "$@"
echo "pushed: $(grep -c '"commit"' "$output/hub/events.jsonl" 2>/dev/null) commits"
part agreement "$python" bench/backend_agreement.py --model "$model" --adapter "$output/run/output/teacher-sft/seed-42/final" \
    --output "$output/backend-agreement.json" --gpu-memory-utilization 0.5 "$@"
