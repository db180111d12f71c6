#!/usr/bin/env bash
# Makes or repairs the environment .venv-snakemake, which runs the workflow of the experiments and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv-snakemake/.installed-$(cksum <experiments/requirements.txt | tr ' ' -)
[ -e "$stamp" ] && exit 0
python=.venv/bin/python # 3.11 or newer, made by util/make_env.sh
"$python" -m venv .venv-snakemake
echo "installing Snakemake into .venv-snakemake" >&2
.venv-snakemake/bin/python -m pip install --disable-pip-version-check --quiet -r experiments/requirements.txt || {
    echo "experiments/make_snakemake_env.sh: error: pip could not install experiments/requirements.txt; see the lines above" >&2
    exit 1
}
touch "$stamp"
