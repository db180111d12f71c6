#!/usr/bin/env bash
# Packs the pinned GPU set (requirements.lock) for a GPU machine without network that has Python 3.12 and an older torch
# of the same CUDA: bench/gpu_box/build_pack.sh FOLDER. unpack.sh makes the environment there.
# Left out are the CUDA libraries that fit from the older torch (all but NCCL, of which torch 2.13 needs newer
# functions), packages that such an image has, those for other model families, and kernels that a Hopper card (sm_90)
# does not use here: FlashAttention 2, DeepGEMM, MLA. Needs zip, split, sha256sum and 4 GB of disk.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1/wheels" && cd "$1"
python=${PYTHON:-python3}
part=${PART:-52MB}

there="opencv-python-headless llvmlite numba pyarrow scipy matplotlib fonttools contourpy kiwisolver cuda-bindings \
cuda-core cuda-pathfinder grpcio"
other_models="tokenspeed-triton tokenspeed-mla nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base \
nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-cu12 nvidia-cutlass-dsl-libs-cu13 tilelang pynvvideocodec \
z3-solver cuda-python cuda-tile nccl-extensions nccl4py nvidia-cudnn-frontend torchcodec instanttensor \
fastsafetensors humming-kernels quack-kernels torch-c-dlpack-ext nvtx"
cuda="cuda-toolkit nvidia-cublas nvidia-cuda-[a-z]+ nvidia-cudnn-cu13 nvidia-cu[a-z]+ nvidia-cusparselt-cu13 \
nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx nvidia-nvvm"

# A pin and its hashes as one line, without those that are left out.
out=$(echo "$there $other_models $cuda" | tr -s ' ' '|')
sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' "$repo/requirements.lock" | grep -vE "^#|^($out)==" > kept.txt
pip=("$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest wheels
    --python-version 3.12 --implementation cp)
for minor in $(seq 5 39); do pip+=(--platform "manylinux_2_${minor}_x86_64"); done
for old in manylinux1 manylinux2010 manylinux2014; do pip+=(--platform "${old}_x86_64"); done
"${pip[@]}" --require-hashes -r kept.txt
"${pip[@]}" uv==0.13.9 # installs in seconds; checked by the sums of the parts

leave_out() { local wheel=$1; shift; zip --quiet --delete wheels/"$wheel"-*.whl "$@" || [ $? = 12 ]; } # 12: done already
leave_out vllm 'vllm/vllm_flash_attn/_vllm_fa2_C*' vllm/vllm-rs 'vllm/third_party/deep_gemm/*' \
    'vllm/third_party/fmha_sm100/*' 'vllm/_flashmla_C*' 'vllm/_qutlass_C*' 'vllm/_flashkda_C*'
leave_out triton 'triton/backends/nvidia/lib/cupti/*.a' 'triton/backends/nvidia/lib/cupti/libnvperf*' \
    'triton/backends/nvidia/lib/cupti/libcupti.so.*' triton/backends/nvidia/bin/ptxas-blackwell 'triton/instrumentation/*'
leave_out torch 'torch/include/*' 'torch/bin/protoc*'

rm -rf parts && mkdir parts
tar cf - -C wheels $(cd wheels && ls -- *.whl) | split -b "$part" -d -a 2 - parts/part.
(cd parts && sha256sum part.* > parts.sha256)
echo "$(du -sm parts | cut -f1) MB in $(ls parts | grep -c part.[0-9]) parts: $1/parts"
