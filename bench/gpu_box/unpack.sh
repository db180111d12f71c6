#!/usr/bin/env bash
# Makes an environment of the pinned GPU set from the parts of bench/gpu_box/build_pack.sh, on a machine without network
# that has Python 3.12 and an older torch of the same CUDA: bench/gpu_box/unpack.sh PARTS_FOLDER ENVIRONMENT
# The CUDA libraries that the pack lacks are linked from that torch; so are its other packages, behind the pinned ones.
set -euo pipefail
parts=$(cd "$1" && pwd)
mkdir -p "$2" && env=$(cd "$2" && pwd)
python=${PYTHON:-python3}

(cd "$parts" && sha256sum --check --quiet parts.sha256) || { echo "unpack.sh: a part is missing or damaged" >&2; exit 1; }
mkdir -p "$env.wheels"
cat "$parts"/part.* | tar xf - -C "$env.wheels"
"$python" -m venv --without-pip "$env"
"$python" -m zipfile -e "$env.wheels"/uv-*.whl "$env.wheels/uv"
uv=$(find "$env.wheels/uv" -name uv -type f)
chmod +x "$uv"
UV_CACHE_DIR="$env.cache" "$uv" pip install --quiet --python "$env/bin/python" --no-index --no-deps --offline \
    "$env.wheels"/*.whl

# torch looks for the CUDA libraries in the folder nvidia beside it.
"$python" - "$env" <<'PY'
import sys
from importlib.util import find_spec
from pathlib import Path

pinned = next(Path(sys.argv[1]).glob("lib/python3*/site-packages"))
there = Path(find_spec("torch").origin).parents[1]
(pinned / "packages-of-the-machine.pth").write_text(f"{there}\n")
linked = 0
for file in sorted((there / "nvidia").rglob("*")):
    target = pinned / file.relative_to(there)
    if file.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
        linked += file.name.startswith("lib")
print(f"linked {linked} CUDA libraries of {there}")
PY
"$env/bin/python" - <<'PY'
from importlib.metadata import version

import torch

names = ("torch", "vllm", "transformers", "trl", "peft", "triton", "numpy", "nvidia-nccl-cu13")
print("environment ready:", ", ".join(f"{name} {version(name)}" for name in names))
print(f"CUDA {torch.version.cuda}, GPU {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
PY
