"""Runs a script of the suite and measures it: its command line, its seconds and memory, and the machine's name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from util.cli import REPO, UserError

MEGABYTE = 1024 * 1024


def device_name() -> str:
    """The name of the first GPU, or the number of CPU cores where there is none ('2 CPU cores')."""
    with suppress(OSError, subprocess.CalledProcessError):
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True,
                               capture_output=True, text=True).stdout  # fmt: skip
        if names.strip():
            return names.split("\n")[0]
    return f"{os.cpu_count()} CPU cores"


def script_command(name: str, *arguments: object) -> list[str]:
    """The command that runs a script of the suite with this Python: script_command("eval/eval.py", "--epochs", 5)."""
    return [sys.executable, str(REPO / name), *map(str, arguments)]


def run_measured(command: list[str], cwd: Path, cores: set[int] | None = None) -> dict[str, float]:
    """Run a command to its end: wall seconds, CPU seconds and peak memory (MB). `cores` are the CPU cores it may use.

    Raises UserError with the command's output if it fails.
    """
    begun = time.monotonic()
    with (cwd / "log").open("w+") as log:
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, env=environment)
        if cores:
            os.sched_setaffinity(process.pid, cores)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        if status:
            raise UserError(f"{' '.join(command)} failed:\n{Path(log.name).read_text()}")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_megabytes": round(used.ru_maxrss * 1024 / MEGABYTE, 1),
    }
