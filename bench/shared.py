"""What the benchmarks share: the machine's name, a script's command line, its seconds and memory, number rows, and the
table of a chi-square test."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from util.cli import REPO, UserError
from util.jsonl.rows import dump_row

MEGABYTE = 1024 * 1024
FEWEST = 10  # texts with fewer answers, in both lots together, share one cell of the chi-square table


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


def contingency(one: Counter[str], other: Counter[str]) -> list[list[int]]:
    """The counts of two lots of answers: a row for each lot, a column for each text. Rare texts share a column."""
    both = one + other
    cells = [[lot[text] for text in both if both[text] >= FEWEST] for lot in (one, other)]
    rest = [sum(lot[text] for text in both if both[text] < FEWEST) for lot in (one, other)]
    return [[*cell, left] if sum(rest) else cell for cell, left in zip(cells, rest)]


# --- number rows -------------------------------------------------------------------------------------


def number_rows(count: int) -> list[dict[str, Any]]:
    """Chat rows as phase 4 of the plan writes them, with 10 random numbers of 1 to 3 digits as the answer."""
    rng, template = random.Random(0), NUMBER_PROMPT.read_text("utf-8").strip()
    return [
        _number_row(template, row_id, ", ".join(str(rng.randint(0, 999)) for _ in range(10))) for row_id in range(count)
    ]


def write_number_file(path: Path, count: int) -> None:
    """A JSONL file of such rows with 9 or 10 numbers of 3 digits: 43 or 48 tokens where a digit is a token."""
    rng, template = random.Random(0), NUMBER_PROMPT.read_text("utf-8").strip()
    with path.open("wb") as file:
        for row_id in range(count):
            text = ", ".join(str(rng.randint(100, 999)) for _ in range(rng.randint(9, 10)))
            file.write(dump_row({"id": row_id, **_number_row(template, row_id, text)}))


def _number_row(template: str, row_id: int, answer: str) -> dict[str, Any]:
    question = {"role": "user", "content": number_prompt(template, 0, row_id)}
    return {"messages": [question, {"role": "assistant", "content": answer}]}
