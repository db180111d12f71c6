"""Run a command with a vLLM server beside it: started for it, asked by it through VLLM_BASE_URL, stopped after it.

    python util/serve.py Qwen/Qwen2.5-7B-Instruct -- \\
        python eval/eval.py --model Qwen/Qwen2.5-7B-Instruct --adapter output/student-sft/seed-42/final --epochs 1000
    python util/serve.py Qwen/Qwen2.5-7B-Instruct --data-parallel-size 2 --api-server-count 1 -- bash my-phases.sh

Before `--`: the model, then any flags of `vllm serve`, which win over those set here. The server listens on a free
loopback port and takes adapters at run time (`--adapter FOLDER` of every script), so one server does for a whole chain.
When the server dies or hangs and the command fails with it, both are started again: every script goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, positive_float, run
from util.inference.vllm_server import START_SECONDS, run_command, server
from util.signals import stop_on_signal
from util.terminal import say

RESTARTS = 2


def parse_args() -> argparse.Namespace:
    argv, command = split_command(sys.argv[1:])
    parser = make_parser(__doc__)
    parser.usage = "%(prog)s MODEL [vllm serve flags] -- COMMAND"
    parser.add_argument("model", help="hub id or folder to serve")
    parser.add_argument("--log", type=Path, default=Path("output/vllm.log"), help="file for the server's own lines")
    parser.add_argument("--start-seconds", type=positive_float, default=START_SECONDS, help="longest start")
    args, flags = parser.parse_known_args(argv)
    args.flags, args.command = flags, command
    if not command and not {"-h", "--help"} & set(argv):
        parser.error("no command: put `--` and the command to run after the model and flags")
    return args


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and after it."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


# --- the server --------------------------------------------------------------------------------------


# --- the command -------------------------------------------------------------------------------------


def main() -> int:
    args = parse_args()
    code = 1
    for attempt in range(RESTARTS + 1):
        with stop_on_signal() as stop, server(args.model, args.flags, args.log, args.start_seconds, stop) as running:
            code = run_command(args.command, {**os.environ, "VLLM_BASE_URL": running.url}, stop)
            stop.raise_if_requested()
            trouble = running.trouble() if code else None
        if trouble is None:
            return code
        if attempt < RESTARTS:
            say(f"vLLM {trouble} while the command ran (it left code {code}); {running.last_lines()}")
            say("starting both again: the command goes on where it was")
    raise UserError(f"vLLM failed {RESTARTS + 1} times; see {args.log}. What was answered is on disk")


if __name__ == "__main__":
    run(main)
