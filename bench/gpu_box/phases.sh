#!/usr/bin/env bash
# What is measured on a GPU machine without network, one part after the other:
# bench/gpu_box/phases.sh ENVIRONMENT MODEL_FOLDER OUTPUT_FOLDER [vllm serve flags]
#
# PARTS names the parts, in their order (default "readme agreement"):
#   readme     steps 1 to 6 of the README, with 600 teacher rows and 1,500 numbers (ROWS, NUMBERS) and its EPOCHS
#   plan       the plan's six phases by bench/plan.py; SCALE=0.01 is a hundredth of them
#   agreement  vLLM and the local backend, each as it is; this and the next two use the teacher of readme or plan
#   bfloat16   vLLM in bfloat16 with its head in float32, and the local backend in float32
#   float32    both in float32, with the adapter merged
#   shape7b    10,000 numbers (NUMBERS) and 50 questions x 1,000 answers (EPOCHS) at the shape of Qwen2.5-7B, or of SHAPE,
#              a config.json; random weights, MODEL_FOLDER's tokenizer
#   tests      tests/test_gpu.py
# All output is also in OUTPUT_FOLDER/phases.log.
set -uo pipefail
. "$(dirname "$0")/../../experiments/check_settings.sh" "$([ "${1:-}" != --help ] || echo --help)"
[ $# -ge 3 ] || wrong "it takes ENVIRONMENT MODEL_FOLDER OUTPUT_FOLDER; --help says more"
# shellcheck disable=SC2086
one_of PARTS "readme plan agreement bfloat16 float32 shape7b tests" ${PARTS:-}
cd "$(dirname "$0")/../.."
python=$1/bin/python model=$2
mkdir -p "$3" && output=$(cd "$3" && pwd)
shift 3
flags=("$@")
export PATH="$(dirname "$python"):$PATH" PYTHONUNBUFFERED=1 VLLM_NO_USAGE_STATS=1 VLLM_USE_FLASHINFER_SAMPLER=0 WANDB_MODE=offline
exec > >(tee -a "$output/phases.log") 2>&1
if nvidia-smi -L > /dev/null 2>&1; then server=chosen attention=(--attention-backend TRITON_ATTN); else server=cpu attention=(); fi

part() { # part NAME COMMAND...: runs it, and says how long it took and how it ended
    local name=$1 begun=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: exit code $?, $((SECONDS - begun)) s"
}

agree() { # agree NAME FLAG...: the exact log-probabilities of the backends with a teacher's adapter
    local name=$1 teacher=$output/run/output/teacher-sft/seed-42/final
    shift
    [ -d "$teacher" ] || teacher=$output/plan/teacher-sft/seed-42/final
    part "$name" "$python" bench/backend_agreement.py --model "$model" --adapter "$teacher" --output "$output/$name.json" \
        --gpu-memory-utilization 0.5 "$@" "${flags[@]}"
}

throughput() { # of a folder with that shape's config and the model's tokenizer
    mkdir -p "$output/shape"
    find -L "$model" -maxdepth 1 -type f ! -name '*.safetensors*' -exec cp -t "$output/shape" {} +
    cp "${SHAPE:-bench/gpu_box/qwen2.5-7b.json}" "$output/shape/config.json"
    "$python" bench/vllm_throughput.py --model "$output/shape" --servers "$server" --count "${NUMBERS:-10000}" \
        --epochs "${EPOCHS:-1000}" --output "$output/throughput.json"
}

"$python" tests/fake_hub.py --folder "$output/hub" > "$output/hub-port" &
hub=$!
trap 'kill $hub' EXIT
until [ -s "$output/hub-port" ]; do sleep 0.2; done
export HF_ENDPOINT=http://127.0.0.1:$(cat "$output/hub-port") HF_TOKEN=hf_fake

part nvidia-smi sh -c "nvidia-smi; nvidia-smi -L; nvidia-smi --query-gpu=driver_version,memory.total,memory.free,compute_cap,name --format=csv,noheader"
part doctor "$python" util/doctor.py
for name in ${PARTS:-readme agreement}; do
    case $name in
        readme)
            part readme "$python" bench/readme_phases.py --model "$model" --output-dir "$output/run" --push \
                ${ROWS:+--rows "$ROWS"} ${NUMBERS:+--numbers "$NUMBERS"} ${EPOCHS:+--epochs "$EPOCHS"} "${flags[@]}"
            echo "pushed: $(grep -c '"commit"' "$output/hub/events.jsonl" 2>/dev/null) commits" ;;
        plan) part plan "$python" bench/plan.py --model "$model" --output-dir "$output/plan" ${SCALE:+--scale "$SCALE"} \
            --keep-server --gpu-memory-utilization 0.4 "${flags[@]}" ;;
        agreement) agree agreement ;;
        bfloat16) agree bfloat16 --local-dtype float32 --hf-overrides '{"head_dtype": "float32"}' ;;
        float32) agree float32 --merged --dtype float32 --enforce-eager "${attention[@]}" ;;
        shape7b) part shape7b throughput ;;
        tests) part tests "$python" -m pytest -m gpu tests/test_gpu.py ;;
    esac
done
