#!/usr/bin/env bash
# Runs Snakemake on the Snakefile of this folder: snakemake.sh ARGUMENTS...
# A Snakemake that was killed leaves a lock behind. It is removed, but only if no Snakemake works in this folder any more.
set -euo pipefail
cd "$(dirname "$0")/.."
command=(.venv-snakemake/bin/snakemake -s experiments/Snakefile "$@")

at_work() { # process ids of every Snakemake of this folder, those that run its jobs too
    local process
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/cwd" 2>/dev/null)" = "$PWD" ] || continue
        tr '\0' '\n' 2>/dev/null <"$process/cmdline" | grep -qE '^(.*/)?snakemake$' && echo "${process#/proc/}"
    done
    return 0
}

if [ -e /proc/self/cwd ] && compgen -G '.snakemake/locks/*' >/dev/null; then
    pids=$(at_work | paste -sd ' ')
    if [ -n "$pids" ]; then
        echo "snakemake.sh: error: Snakemake still works in this folder (process $pids); wait for it or stop it" >&2
        exit 1
    fi
    echo "removing the lock of a Snakemake that was killed" >&2
    "${command[@]}" --unlock --quiet all
fi
exec "${command[@]}"
