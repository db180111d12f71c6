#!/usr/bin/env bash
# Prints the GPUs that a command may use, one name for CUDA_VISIBLE_DEVICES in each line; nothing where there is none.
# A scheduler's CUDA_VISIBLE_DEVICES is obeyed (empty or -1: no GPU). A GPU that MIG has split counts as its parts: a
# process can use one of them, and not the whole.
set -euo pipefail
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed -n '/^\(\|-.*\|NoDevFiles\)$/q; p' # CUDA stops at the first bad name
    exit
fi
{ nvidia-smi -L 2>/dev/null || true; } | awk '
    /^GPU [0-9]+:/ { if (whole != "") print whole; whole = $2; sub(":", "", whole) }
    /^ +MIG .*UUID:/ { sub(/.*UUID: */, ""); sub(/\).*/, ""); print; whole = "" }
    END { if (whole != "") print whole }'
