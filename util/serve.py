"""Start a vLLM server, run a command that asks it, and stop the server when the command ends.

    python util/serve.py Qwen/Qwen2.5-7B-Instruct -- \\
        python eval/eval.py --model Qwen/Qwen2.5-7B-Instruct --adapter output/student-sft/seed-42/final --epochs 1000
    python util/serve.py Qwen/Qwen2.5-7B-Instruct --data-parallel-size 2 --api-server-count 1 -- bash my-phases.sh

Before `--` come the model and any flags of `vllm serve`, which win over those set here (a model larger than a card:
--tensor-parallel-size 4). The command finds the server through the environment variable VLLM_BASE_URL, so its scripts
need no --base-url. The server listens on a free loopback port and loads adapters while it runs (--adapter FOLDER of
every script), so one server is enough for several scripts. It takes adapters up to rank 8, or up to the rank of those
that the command names; for others pass --max-lora-rank. If the server dies or hangs and the command fails, both are
started again, and every script resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, nonblank, positive_float, run
from util.inference.check_adapter import adapters_in, check_adapter, check_fits, rank_for
from util.inference.hub_files import model_config
from util.inference.load_model import check_folder
from util.inference.vllm_server import FLAGS, RANK, START_SECONDS, run_command, server
from util.stop_signals import stop_on_signal
from util.terminal import say

RESTARTS = 2


def parse_args() -> argparse.Namespace:
    argv, command = split_command(sys.argv[1:])
    parser = make_parser(__doc__)
    parser.usage = "%(prog)s MODEL [options] [vllm serve flags] -- COMMAND"
    parser.add_argument("model", type=nonblank, help="hub id or folder of the model to serve")
    parser.add_argument("--log", type=Path, default=Path("output/vllm.log"), help="file for the server's log")
    parser.add_argument(
        "--start-seconds",
        type=positive_float,
        default=START_SECONDS,
        help="stop if the server does not answer after this many seconds",
    )
    args, flags = parser.parse_known_args(argv)
    args.flags, args.command = flags, command
    if not command and not {"-h", "--help"} & set(argv):
        parser.error("no command; put `--` and the command to run after the model and flags")
    return args


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words before the first `--`, the words after it)."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def main() -> int:
    args = parse_args()
    check_folder(args.model)
    if shutil.which(args.command[0]) is None:
        raise UserError(f"cannot run {args.command[0]}: no such command; nothing was started")
    adapters = adapters_in([*args.flags, *args.command])
    for adapter in adapters:
        check_adapter(adapter)
        check_fits(adapter, args.model, model_config(args.model))
    code, said = 1, ""
    defaults = {**FLAGS, RANK: str(rank_for(adapters))}
    for attempt in range(RESTARTS + 1):
        with (
            stop_on_signal() as stop,
            server(args.model, args.flags, args.log, args.start_seconds, stop, defaults) as running,
        ):
            code = run_command(args.command, {**os.environ, "VLLM_BASE_URL": running.url}, stop)
            stop.raise_if_requested()
            trouble = running.trouble() if code else None
        if trouble is None:
            return code
        said = running.from_log()
        if attempt < RESTARTS:
            say(f"vLLM {trouble} while the command ran (its exit code: {code}); {said}")
            say("starting both again; the command resumes where it stopped")
    raise UserError(f"vLLM failed {RESTARTS + 1} times. Everything answered is on disk; {said}")


if __name__ == "__main__":
    run(main)
