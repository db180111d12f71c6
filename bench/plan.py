"""Run the whole plan by one command, with the suite's own scripts, and time each phase.

The phases are teacher data, teacher, its evaluation, numbers, student, its evaluation. vLLM (started as util/serve.py
starts it) is up for the phases that ask; with --local the scripts run the model themselves. Flags that this script does
not know are passed to `vllm serve`. If it is stopped (Ctrl-C, SIGTERM), the same command resumes it. At the end it
prints a table of what is done.

The student trains on the clean rows of phase 4, however many there are. Where fewer than a tenth are clean, it trains
on as many rows of 9 or 10 random numbers as were asked for, and the table says so. That is for a model folder without
weights, which gets random ones (bench/random_weights.py): they say random words, so phase 1 keeps its rows, but none of
phase 4 is a list of numbers.

Usage:
    python bench/plan.py --model Qwen/Qwen2.5-7B-Instruct --output-dir output/bench-plan
    python bench/plan.py --model shapes/qwen7b --output-dir output/bench-plan --keep-server --gpu-memory-utilization 0.5
    python bench/plan.py --model pocket/model --output-dir output/bench-plan-pocket --scale 0.01 --local
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import device_name
from bench.plan_phases import ANSWER_TOKENS, EPOCHS, NUMBER_TOKENS, PHASES, Call, Phase, Plan
from bench.random_weights import has_weights, make_model
from util.cli import REPO, UserError, make_parser, nonblank, output_folder, positive_float, positive_int, run
from util.inference.vllm_server import START_SECONDS, find_vllm, run_command, server
from util.jsonl.manifest import provenance, write_json
from util.stop_signals import Stop, stop_on_signal
from util.terminal import duration, say, table

TARGET_MINUTES, PLANNED_MINUTES = 25, 150


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.renamed("--folder", "--output-dir")
    parser.renamed("--embedded", "--local")
    parser.usage = "%(prog)s --model MODEL --output-dir FOLDER [options] [vllm serve flags]"
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; without weights random ones are made"
    )
    parser.add_argument(
        "--output-dir",
        type=output_folder,
        required=True,
        help="folder for everything; a run in it that was stopped is resumed",
    )
    parser.add_argument("--scale", type=positive_float, default=1.0, help="part of the plan's rows and eval epochs")
    parser.add_argument("--epochs", type=positive_int, default=EPOCHS,
                        help="training epochs; with fewer the table also shows what ten would take")  # fmt: skip
    parser.add_argument("--keep-server", action="store_true",
                        help="keep one server up, also while training: for a GPU with memory for both")  # fmt: skip
    parser.add_argument("--gpu-memory-gib", type=positive_float, metavar="GIB",
                        help="cap the trainings' memory; vLLM's share is --gpu-memory-utilization")  # fmt: skip
    parser.add_argument("--local", action="store_true", help="no server: the scripts run the model themselves")
    args, args.flags = parser.parse_known_args()
    if args.flags and not args.flags[0].startswith("-"):
        parser.error(f"what is {args.flags[0]}? flags of vllm serve begin with --")
    return args


# --- running them ------------------------------------------------------------------------------------


class State:
    """Which phases are done and what they took, in plan.json of the output folder."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.phases: dict[str, dict[str, Any]] = {}
        if path.is_file():
            before = json.loads(path.read_text("utf-8"))
            if before["settings"] != settings:
                raise UserError(
                    f"{path} belongs to a run with other settings: {before['settings']}; use another --output-dir"
                )
            self.phases = before["phases"]
        self.settings = settings

    def add(self, name: str, seconds: float, done: bool = True, facts: Mapping[str, Any] | None = None) -> None:
        """Write down a phase's seconds; those of a run that was stopped in it are added."""
        before = self.phases.get(name, {"seconds": 0.0, "stops": 0})
        self.phases[name] = {
            "seconds": round(before["seconds"] + seconds, 1),
            "stops": before["stops"] + (not done),
            "done": done,
            **(facts or {}),
        }
        write_json(
            self.path, {**provenance(), "device": device_name(), "settings": self.settings, "phases": self.phases}
        )

    def done(self, name: str) -> bool:
        return bool(self.phases.get(name, {}).get("done"))


def caller(environment: Mapping[str, str], stop: Stop) -> Call:
    """A function that runs a script of the suite to its end; UserError if the script fails, unless `may_fail()`."""

    def call(*words: object, may_fail: Callable[[], bool] = lambda: False) -> None:
        script, *arguments = map(str, words)
        say(f"\n$ python {' '.join([script, *arguments])}")
        code = run_command([sys.executable, str(REPO / script), *arguments], environment, stop)
        stop.raise_if_requested()
        if code and not may_fail():
            raise UserError(f"{script} ended with code {code}; fix what it says above and run the same command again")

    return call


def run_phases(plan: Plan, state: State, stop: Stop) -> None:
    """Every phase that is not done, with a server up for those that ask."""
    args, running = plan.args, None
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "SUITE_DRIVER": "1"}
    environment.pop("VLLM_BASE_URL", None)
    with ExitStack() as stack:
        for phase in PHASES:
            if state.done(phase.name):
                continue
            if running and not phase.asks and not args.keep_server:
                stack.close()
                running = None
                del environment["VLLM_BASE_URL"]
            if phase.asks and not running and not args.local:
                begun = time.monotonic()
                running = stack.enter_context(
                    server(plan.model, args.flags, plan.folder / "vllm.log", START_SECONDS, stop)
                )
                environment["VLLM_BASE_URL"] = running.url
                if not state.done(start_of(phase)):  # a start after an interruption is not part of the plan
                    state.add(start_of(phase), time.monotonic() - begun)
            begun, facts = time.monotonic(), None
            try:
                facts = phase.run(plan, caller(environment, stop))
            finally:
                state.add(phase.name, time.monotonic() - begun, facts is not None, facts)


def start_of(phase: Phase) -> str:
    return f"{phase.name[0]} start vLLM"


# --- the table ---------------------------------------------------------------------------------------


def projected(found: Mapping[str, Any], epochs: int) -> float:
    """Seconds of a phase with the plan's ten epochs: a training has more updates, at its median pace."""
    seconds = float(found["seconds"])
    if found.get("seconds_an_update"):
        seconds += found["seconds_an_update"] * found["updates"] * (EPOCHS / epochs - 1)
    return seconds


def description(found: Mapping[str, Any]) -> str:
    """What a phase did, in one cell."""
    if found.get("kind") == "training":
        return (f"{found['rows']:,} rows, {found['updates']:,} updates, {found['tokens_per_second']:,.0f} tokens/s"
                + (f", {found['peak_memory_gib']:.0f} GiB" if found.get("peak_memory_gib") else ""))  # fmt: skip
    if found.get("kind") == "asking":
        clean = f", {found['clean']:,} clean" if "clean" in found else ""
        tokens = found["tokens"] / max(found["rows"], 1)
        return f"{found['rows']:,} answers of {tokens:.0f} tokens in {found['work_seconds']:.0f} s{clean}"
    return ""


def report(state: State, plan: Plan) -> str:
    """The table of what is done, the sum, and notes on what differs from the plan."""
    names = [name for phase in PHASES for name in (start_of(phase), phase.name) if name in state.phases]
    minutes = {phase.name: phase.minutes for phase in PHASES}
    epochs, fewer = plan.args.epochs, plan.args.epochs < EPOCHS
    rows: list[list[Any]] = []
    sums, notes = [0.0, 0.0], []
    for name in names:
        found = state.phases[name]
        whole = projected(found, epochs) if found["done"] else found["seconds"]
        sums = [sums[0] + found["seconds"], sums[1] + whole]
        rows.append([name, f"{found['seconds']:.0f}", f"{whole:.0f}", minutes.get(name, ""), description(found)])
        if not found["done"]:
            notes.append(f"{name}: not finished; run the same command again")
        elif found["stops"]:
            notes.append(f"{name}: stopped {found['stops']} times; the seconds are the sum")
        if found.get("note"):
            notes.append(f"{name}: {found['note']}")
    rows.append(["sum", f"{sums[0]:.0f}", f"{sums[1]:.0f}", PLANNED_MINUTES, duration(sums[1])])
    header: list[Any] = ["phase", "seconds", f"seconds of {EPOCHS} epochs", "plan, A100, min", "what"]
    shown = [header, *rows] if fewer else [[*row[:2], *row[3:]] for row in (header, *rows)]
    missing = [phase.name for phase in PHASES if not state.done(phase.name)]
    if plan.args.scale != 1:
        notes.append(f"scale {plan.args.scale:g}: this part of the plan's rows and answers")
    if plan.random:
        notes.append(f"random weights: answers of phase 4 and of the evaluations end at {NUMBER_TOKENS} and"
                     f" {ANSWER_TOKENS} tokens")  # fmt: skip
    if not missing and plan.args.scale == 1:
        notes.append(
            f"{sums[1] / 60:.1f} minutes (target: {TARGET_MINUTES} on an H200; planned: {PLANNED_MINUTES} on an A100)"
        )
    notes += [f"not done: {', '.join(missing)}"] if missing else []
    return "\n".join([device_name(), "", table(shown[0], shown[1:]), "", *notes])


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not args.local:
        find_vllm()
    random_weights = not has_weights(args.model)
    model = args.model if not Path(args.model).is_dir() else str(Path(args.model).resolve())
    if random_weights:
        model = str(make_model(Path(args.model), args.output_dir.resolve() / "model"))
    plan = Plan(args, model, random_weights)
    settings = {"model": args.model, "scale": args.scale, "epochs": args.epochs, "keep_server": args.keep_server,
                "embedded": args.local, "flags": args.flags}  # fmt: skip  # "embedded": as in older plan.json files
    if args.gpu_memory_gib:
        settings["gpu_memory_gib"] = args.gpu_memory_gib
    state = State(plan.folder / "plan.json", settings)
    try:
        with stop_on_signal() as stop:
            run_phases(plan, state, stop)
    finally:
        print(report(state, plan), flush=True)


if __name__ == "__main__":
    run(main)
