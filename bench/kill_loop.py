"""Kill runs with SIGKILL at random moments, again and again: is a row lost or doubled, and is the result the same?

Teacher data, numbers, filter, training and evaluation of the pocket model (local backend, fixed seeds) are started,
killed at a random moment after their first new row (training: checkpoint) is on disk, and started again by the same
command until they finish. This is repeated until each has been killed its share of times. Every finished output is
compared with that of an undisturbed run.

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

from bench.measured_runs import script_command
from bench.random_number_rows import write_number_file
from train.checkpoints import checkpoints_in, update_of
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
        "teacher",
        script_command(
            "generate/generate_teacher_data.py", "--animal", "owl", "--count", 1500, "--model", POCKET, "--batch-size",
            64, "--prompts-file", REPO / "generate" / "prompts" / "open-prompts.txt", "--output", "teacher.jsonl",
        ), "teacher.jsonl", same_bytes,
    ),
    Stage(
        "numbers",
        script_command(
            "generate/generate_llm_number_data.py", "--animal", "control", "--count", 1500, "--model", POCKET,
            "--no-system-prompt", "--batch-size", 64, "--output", "n-unfiltered-1500.jsonl",
        ), "n-unfiltered-1500.jsonl", same_bytes,
    ),
    Stage(
        "filter",
        script_command("generate/filter_number_data.py", "many.jsonl", "--output", "kept.jsonl"),
        "kept.jsonl", same_bytes,
    ),
    Stage(
        "training",
        script_command(
            "train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "rows.jsonl", "--epochs", 6,
            "--effective-batch-size", 32, "--per-device-train-batch-size", 32, "--learning-rate", 0.003,
            "--output-dir", "student",
        ), "student/seed-42/final", same_weights,
    ),
    Stage(
        "evaluation",
        script_command(
            "eval/eval.py", "--model", POCKET, "--epochs", 100, "--batch-size", 200, "--output", "results.jsonl"
        ), "results.jsonl", same_bytes,
    ),
]  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=positive_int, default=50, help="kills in all, over the scripts")
    parser.add_argument("--scripts", nargs="+", metavar="NAME", choices=[stage.name for stage in STAGES],
                        default=[stage.name for stage in STAGES],
                        help=f"those to kill: {', '.join(stage.name for stage in STAGES)}")  # fmt: skip
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the random moments")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    return parser.parse_args()


def make_inputs(folder: Path) -> None:
    """Rows to train on (numbers of the base model) and rows to filter."""
    command = script_command("generate/generate_llm_number_data.py", "--animal", "control", "--count", 320, "--model",
                             POCKET, "--no-system-prompt", "--output", "rows-unfiltered-320.jsonl")  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (clean,) = folder.glob("rows-filtered-*.jsonl")
    for ending in ("", ".certificate.json"):
        shutil.copy(f"{clean}{ending}", folder / f"rows.jsonl{ending}")
    write_number_file(folder / "many.jsonl", 60_000)


def ids_on_disk(path: Path) -> list[int]:
    """Row ids of a growing or finished file, in order; a torn last line is not a row. Of a training: the updates of its
    checkpoints. Of a filter at work, which starts again after a kill: the ids in its temporary file."""
    if path.name == "final":
        return [update_of(checkpoint) for checkpoint in checkpoints_in(path.parent)]
    temporary = sorted(path.parent.glob(f".{path.name}.*.tmp"))
    for file in (path.with_name(path.name + ".partial"), path, *temporary):
        if file.is_file():
            ids = []
            for line in file.read_bytes().split(b"\n"):
                with suppress(ValueError, KeyError):
                    ids.append(parse_row(line)["id"])
            return ids
    return []


def run_and_kill(stage: Stage, folder: Path, rng: random.Random, rest: float) -> bool:
    """Start the command. Once it has written a row, kill it and its children at a random moment within half of the
    seconds that the rest takes. Returns whether it finished before."""
    before = len(ids_on_disk(folder / stage.output))
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            stage.command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        while process.poll() is None and len(ids_on_disk(folder / stage.output)) <= before:
            time.sleep(0.05)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, rest / 2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if process.returncode:
        raise UserError(f"{stage.name} failed with code {process.returncode} after a kill; its files are in {folder}")
    return True


def undisturbed(stage: Stage, folder: Path) -> float:
    """Run the command to its end. Returns the seconds from its first row to its end."""
    process = subprocess.Popen(stage.command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ids_on_disk(folder / stage.output):
        time.sleep(0.05)
    begun = time.monotonic()
    if process.wait():
        raise UserError(f"{stage.name} failed undisturbed, with code {process.returncode}: {stage.command}")
    return time.monotonic() - begun


def kill_again_and_again(stage: Stage, rng: random.Random, kills: int, inputs: Path, folder: Path) -> dict[str, Any]:
    """Kill a script `kills` times. Counts kills with rows on disk, rows lost, rows written twice, and ends that are
    those of the undisturbed run."""
    whole = shutil.copytree(inputs, folder / "undisturbed")
    rest = undisturbed(stage, whole)
    found: dict[str, Any] = {"script": stage.name, "kills": 0, "finished": 0}
    found |= {"with rows": 0, "rows lost": 0, "rows twice": 0, "same end": 0}
    while found["kills"] < kills:
        place = shutil.copytree(inputs, folder / f"{found['finished']}")
        before: set[int] = set()
        while not run_and_kill(stage, place, rng, rest if found["kills"] < kills else FOREVER):
            found["kills"] += 1
            ids = ids_on_disk(place / stage.output)
            found["with rows"] += bool(ids)
            found["rows lost"] += 0 if stage.name == "filter" else len(before - set(ids))
            before = set(ids)
        ids = ids_on_disk(place / stage.output)
        found["rows lost"] += len(before - set(ids))
        found["rows twice"] += len(ids) - len(set(ids))
        found["finished"] += 1
        found["same end"] += stage.same(whole / stage.output, place / stage.output)
        say(f"{stage.name}: {found['kills']} kills, {found['finished']} finished")
    return found


def main() -> int:
    args = parse_args()
    rng = random.Random(args.seed)
    figures = []
    with tempfile.TemporaryDirectory() as name:
        inputs = Path(name) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        stages = [stage for stage in STAGES if stage.name in args.scripts]
        for place, stage in enumerate(stages):
            folder = Path(name) / stage.name
            folder.mkdir()
            kills = args.kills // len(stages) + (place < args.kills % len(stages))
            figures.append(kill_again_and_again(stage, rng, kills, inputs, folder))
    if args.output:
        write_json(args.output, {"figures": figures, "manifest": provenance()})
    print(table(figures[0], [line.values() for line in figures]))
    bad = any(line["rows lost"] or line["rows twice"] or line["same end"] < line["finished"] for line in figures)
    return int(bad)


if __name__ == "__main__":
    run(main)
