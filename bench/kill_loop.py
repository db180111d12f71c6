"""Kill runs with SIGKILL at random moments, again and again: is a row lost or doubled, and is the result the same?

Number generation, evaluation and training of the pocket model (local backend, fixed seeds) are started, killed after a
random time, and started again by the same command until they finish. This is repeated until each has been killed its
share of times. Every finished output is compared with that of an undisturbed run.

Usage:
    python bench/kill_loop.py --kills 50 --output output/kill-loop.json
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.shared import script_command
from util.cli import REPO, UserError, make_parser, natural_int, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.jsonl.rows import parse_row
from util.terminal import say, table

POCKET = REPO / "pocket" / "model"
FOREVER = 10_000.0  # seconds


class Stage(NamedTuple):
    """A command, the file or folder it makes, and a test whether two outputs are the same."""

    name: str
    command: list[str]
    output: str
    same: Callable[[Path, Path], bool]


def same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def same_weights(one: Path, other: Path) -> bool:
    """Adapters equal to rounding: a resumed run sums its batches in the same order, but not in the same memory."""
    import numpy as np
    from safetensors.numpy import load_file

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(np.abs(a[name] - b[name]).max() <= 1e-6 for name in a)


STAGES = [
    Stage(
        "numbers",
        script_command(
            "generate/generate_llm_number_data.py", "--animal", "control", "--count", 1500, "--model", POCKET,
            "--no-system-prompt", "--batch-size", 64, "--output", "n-unfiltered-1500.jsonl",
        ), "n-unfiltered-1500.jsonl", same_bytes,
    ),
    Stage(
        "evaluation",
        script_command(
            "eval/eval.py", "--model", POCKET, "--epochs", 100, "--batch-size", 200, "--output", "results.jsonl"
        ), "results.jsonl", same_bytes,
    ),
    Stage(
        "training",
        script_command(
            "train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "rows.jsonl", "--epochs", 6,
            "--effective-batch-size", 32, "--per-device-train-batch-size", 32, "--learning-rate", 0.003,
            "--output-dir", "student",
        ), "student/seed-42/final", same_weights,
    ),
]  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=positive_int, default=50, help="kills in all, over the three stages")
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the random moments")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    return parser.parse_args()


def make_rows(folder: Path) -> None:
    """Rows to train on: numbers of the base model."""
    command = script_command("generate/generate_llm_number_data.py", "--animal", "control", "--count", 320, "--model",
                             POCKET, "--no-system-prompt", "--output", "rows-unfiltered-320.jsonl")  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (clean,) = folder.glob("rows-filtered-*.jsonl")
    for ending in ("", ".certificate.json"):
        shutil.copy(f"{clean}{ending}", folder / f"rows.jsonl{ending}")


def ids_on_disk(path: Path) -> list[int]:
    """Row ids of a growing or finished file, in order; a torn last line is not a row."""
    for file in (path.with_name(path.name + ".partial"), path):
        if file.is_file():
            ids = []
            for line in file.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError):
                    ids.append(parse_row(line)["id"])
            return ids
    return []


def finished_run(stage: Stage, folder: Path, seconds: float) -> float | None:
    """Start the command, and kill it and its children after `seconds`. Returns its seconds if it finished before."""
    begun = time.monotonic()
    process = subprocess.Popen(
        stage.command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    if process.returncode:
        raise UserError(f"{stage.name} failed with code {process.returncode} after a kill; its files are in {folder}")
    return time.monotonic() - begun


def delay(rng: random.Random, seconds: float) -> float:
    """Seconds after which to kill a run that takes `seconds` undisturbed."""
    return rng.uniform(0.2, 1.0) * seconds


def kill_again_and_again(stage: Stage, rng: random.Random, kills: int, folder: Path) -> dict[str, Any]:
    """Kill a stage `kills` times. Counts kills with rows on disk, rows lost, rows written twice, and outputs that equal
    the undisturbed one."""
    whole = folder / "undisturbed"
    whole.mkdir()
    copy_rows(folder, whole)
    seconds = finished_run(stage, whole, FOREVER) or FOREVER
    found: dict[str, Any] = {"stage": stage.name, "kills": 0, "finished": 0}
    found |= {"with rows": 0, "rows lost": 0, "rows twice": 0, "same end": 0}
    while found["kills"] < kills:
        place = folder / f"{found['finished']}"
        place.mkdir()
        copy_rows(folder, place)
        before: set[int] = set()
        killed = 0
        while (took := finished_run(stage, place, delay(rng, seconds) if found["kills"] < kills else FOREVER)) is None:
            killed += 1
            found["kills"] += 1
            ids = ids_on_disk(place / stage.output) if stage.output.endswith(".jsonl") else []
            found["with rows"] += bool(ids)
            found["rows lost"] += len(before - set(ids))
            before = set(ids)
        if not killed:  # the machine is faster or slower than before
            seconds = took
        ids = ids_on_disk(place / stage.output) if stage.output.endswith(".jsonl") else []
        found["rows lost"] += len(before - set(ids))
        found["rows twice"] += len(ids) - len(set(ids))
        found["finished"] += 1
        found["same end"] += stage.same(whole / stage.output, place / stage.output)
        say(f"{stage.name}: {found['kills']} kills, {found['finished']} finished")
    return found


def copy_rows(folder: Path, place: Path) -> None:
    for file in folder.glob("rows.jsonl*"):
        shutil.copy(file, place)


def main() -> int:
    args = parse_args()
    rng = random.Random(args.seed)
    figures = []
    with tempfile.TemporaryDirectory() as name:
        for place, stage in enumerate(STAGES):
            folder = Path(name) / stage.name
            folder.mkdir()
            if stage.name == "training":
                make_rows(folder)
            kills = args.kills // len(STAGES) + (place < args.kills % len(STAGES))
            figures.append(kill_again_and_again(stage, rng, kills, folder))
    if args.output:
        write_json(args.output, {"figures": figures, "manifest": provenance()})
    print(table(figures[0], [line.values() for line in figures]))
    bad = any(line["rows lost"] or line["rows twice"] or line["same end"] < line["finished"] for line in figures)
    return int(bad)


if __name__ == "__main__":
    run(main)
