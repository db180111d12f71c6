"""Break real runs on purpose and see what is left: full disks, a server that dies twice, stop signals, a clock that
jumps.

Every part is done with the scripts themselves, the pocket model or the scripted server of the tests. Each line of the
result says what was tried, what happened, and whether it was right. bench/kill_loop.py does the same with SIGKILL.

Usage:
    python bench/break_run.py --output output/break-run.json
    python bench/break_run.py --parts full-disk signals

full-disk needs root (it mounts a small tmpfs); clock needs libfaketime: --faketime PATH/libfaketime.so.1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.break_run_helpers import POCKET, Outcome, ask, last_line, server, try_all
from bench.measured_runs import script_command
from bench.random_number_rows import write_number_file
from util.cli import REPO, make_parser, output_name, run

SCHEDULERS_WAIT = 30  # seconds between SIGTERM and SIGKILL (Slurm, Kubernetes)
NUMBERS = ("generate/generate_llm_number_data.py", "--animal", "control", "--no-system-prompt", "--output", "n.jsonl")
TRAIN = ("train/train_student_sft.py", "--base-model", POCKET, "--train-jsonl", "rows.jsonl", "--allow-uncertified",
         "--epochs", 4, "--effective-batch-size", 20, "--per-device-train-batch-size", 20)  # fmt: skip


# --- parts -------------------------------------------------------------------------------------------


def server_killed_twice(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Numbers and an evaluation whose server is killed twice, against undisturbed ones."""
    for name, script in (("numbers", (*NUMBERS, "--count", 600)), ("evaluation", ("eval/eval.py", "--epochs", 12))):
        whole, broken = folder / f"{name}-whole", folder / f"{name}-broken"
        for place in (whole, broken):
            place.mkdir()
        options = ("--model", "owl-teacher", "--max-concurrency", 16)
        with server(whole) as (url, _):
            port = int(url.split(":")[2].removesuffix("/v1"))
            ask(*script, *options, "--base-url", url, cwd=whole)
        codes = []
        first, second = (90, 150) if name == "numbers" else (20, 15)  # an evaluation is one request a question
        for flags in (("--die-after", first), ("--die-after", second), ()):
            with server(broken, *flags, port=port) as (url, _):
                codes.append(ask(*script, *options, "--base-url", url, cwd=broken)[0])
        ends = [
            next(place.rglob("n.jsonl" if name == "numbers" else "results-*.jsonl"), None) for place in (whole, broken)
        ]
        same = all(ends) and ends[0].read_bytes() == ends[1].read_bytes()  # type: ignore[union-attr]
        yield Outcome(
            f"{name}: server dies twice", f"exit codes {codes}, same bytes: {same}", codes == [3, 3, 0] and same
        )


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """A tmpfs of this size on the folder; yields a function that changes its size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,{size}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_disk(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """No space under rows, a checkpoint and a manifest; then space, and the same command again."""
    control = ("generate/generate_control_number_data.py", "--count", 20_000, "--output", "disk/n.jsonl")
    whole = folder / "whole"
    write_number_file(folder / "rows.jsonl", 60)
    for place in (whole, folder):
        (place / "disk").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "rows.jsonl", whole)
    train = (*TRAIN, "--output-dir", "disk/student")
    filtering = ("generate/filter_number_data.py", "rows.jsonl", "--output", "disk/kept.jsonl")
    small = "size=1m"
    for name, script, size, end in (
        ("rows", control, small, "disk/n.jsonl"), ("checkpoint", train, small, "disk/student/seed-42/final"),
        ("manifest of rows", control, "size=64m,nr_inodes=4", "disk/n.jsonl"),
        ("manifest of a filter", filtering, "size=64m,nr_inodes=2", "disk/kept.jsonl"),
        ("manifest of a training", train, "size=64m,nr_inodes=4", "disk/student/seed-42/final"),
    ):  # fmt: skip
        if not (whole / end).exists():
            ask(*script, cwd=whole)
        with small_disk(folder / "disk", size) as resize:
            code, said = ask(*script, cwd=folder)
            resize("size=256m,nr_inodes=0")
            again, _ = ask(*script, cwd=folder)
            same = again == 0 and same_end(whole / end, folder / end)
        clear = code == 1 and "free some space" in said and "Traceback" not in said
        yield Outcome(
            f"full disk under the {name}", f"{last_line(said)} Then: code {again}, same end: {same}", clear and same
        )


def same_end(one: Path, other: Path) -> bool:
    """Whether two files, or the weights of two adapters, are the same."""
    if one.is_dir():
        import numpy as np
        from safetensors.numpy import load_file

        a, b = (load_file(path / "adapter_model.safetensors") for path in (one, other))
        return a.keys() == b.keys() and all(np.abs(a[name] - b[name]).max() <= 1e-6 for name in a)
    return one.read_bytes() == other.read_bytes()


def signals(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """SIGTERM to every kind of script, at work and while it starts; then the same command to its end."""
    write_number_file(folder / "rows.jsonl", 120)
    write_number_file(folder / "many.jsonl", 60_000)
    local = ("--model", POCKET, "--batch-size", 32)
    with server(folder, "--delay", 0.05) as (url, _):
        asked = ("--model", "owl-teacher", "--base-url", url, "--max-concurrency", 8)
        prompts = ("--prompts-file", REPO / "generate" / "prompts" / "open-prompts.txt")
        scripts: dict[str, tuple[object, ...]] = {
            "teacher data": ("generate/generate_teacher_data.py", "--animal", "owl", "--count", 400, *prompts, *asked),
            "numbers of a server": (*NUMBERS[:4], "--count", 1500, *asked),
            "numbers in this process": (*NUMBERS[:4], "--count", 300, *local),
            "code": ("generate/generate_code_or_reasoning_data.py", "--data-type", "code", "--animal", "owl", "--count",
                     1500, *asked),
            "control numbers": ("generate/generate_control_number_data.py", "--count", 60_000),
            "filter": ("generate/filter_number_data.py", "many.jsonl"),
            "shuffle": ("generate/ablations/shuffle_numbers.py", "--train-jsonl", "many.jsonl", "--scope", "file"),
            "training": (*TRAIN, "--epochs", 12),
            "evaluation by a server": ("eval/eval.py", "--epochs", 60, *asked),
            "evaluation in this process": ("eval/eval.py", "--epochs", 6, *local),
            "exact evaluation": ("eval/eval.py", "--exact", *local),
            "divergence tokens": ("eval/divergence/divergence_tokens.py", "--train-jsonl", "rows.jsonl", "--base-model",
                                  POCKET, "--teacher", "owl", "--counterfactual", "lion", "--batch-size", 4),
        }  # fmt: skip
        for name, script in scripts.items():
            place = folder / name.replace(" ", "-")
            place.mkdir()
            for file in folder.glob("*.jsonl"):
                (place / file.name).symlink_to(file)
            yield stopped(name, script_command(str(script[0]), *script[1:]), place)


def stopped(name: str, command: Sequence[str], place: Path) -> Outcome:
    """Stop a command once something of it is on disk, and run it again to its end."""
    given = {path.name for path in place.iterdir()}
    with (place / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None and not written(place, given):
            time.sleep(0.02)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    seconds = time.monotonic() - begun
    said = (place / "stderr").read_text()
    again = subprocess.run(command, cwd=place, capture_output=True, text=True).returncode
    clear = "Traceback" not in said and (code == 0 or (code == 143 and "stopped by SIGTERM" in said))
    return Outcome(
        f"SIGTERM: {name}",
        f"code {code} after {seconds:.1f} s, then {again}",
        clear and again == 0 and seconds < SCHEDULERS_WAIT,
    )


def written(place: Path, given: set[str]) -> bool:
    """Whether a run has written rows or a checkpoint."""
    names = [path for path in place.rglob("*") if path.name not in given and path.is_file() and path.stat().st_size]
    return any(path.name.endswith((".partial", ".tmp")) or path.parent.name.startswith("checkpoint") for path in names)


def clock(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """A clock that jumps back a month and on by a year while rows are asked."""
    if args.faketime is None:
        return
    jump = folder / "clock"
    environment = {"LD_PRELOAD": str(args.faketime), "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_NO_CACHE": "1",
                   "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip
    script = (*NUMBERS, "--count", 800, "--model", "owl-teacher", "--max-concurrency", 8)
    ends = []
    for name in ("whole", "jumping"):
        place = folder / name
        place.mkdir()
        with server(place, "--delay", 0.03) as (url, _):
            jump.write_text("+0")
            env = {**os.environ, **(environment if name == "jumping" else {})}
            process = subprocess.Popen(script_command(*map(str, script), "--base-url", url), cwd=place, env=env,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
            for to in ("-30d", "+365d", "-1d") if name == "jumping" else ():
                while process.poll() is None and not written(place, set()):
                    time.sleep(0.05)
                time.sleep(0.5)
                jump.write_text(to)
            process.communicate()
        manifest = json.loads((place / "n.jsonl.manifest.json").read_text())
        ends.append((process.returncode, (place / "n.jsonl").read_bytes()))
    seconds = manifest["counts"]["seconds"]
    same = ends[0] == ends[1] and 0 < seconds < 600
    yield Outcome("the clock jumps by a month and a year", f"same rows: {ends[0] == ends[1]}, {seconds} s", same)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Outcome]]] = {
    "server": server_killed_twice, "full-disk": full_disk, "signals": signals, "clock": clock,
}  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to break")
    parser.add_argument("--faketime", type=Path, help="libfaketime.so.1, for the clock")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the results")
    args = parser.parse_args()
    if args.parts == ["clock"] and args.faketime is None:
        parser.error("the clock needs --faketime PATH/libfaketime.so.1")
    return args


def main() -> int:
    args = parse_args()
    return try_all([partial(PARTS[name], args) for name in args.parts], args.output)


if __name__ == "__main__":
    run(main)
