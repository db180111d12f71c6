"""The whole plan by one command, timed phase by phase: teacher data, teacher, its evaluation, numbers, student, its
evaluation, by the suite's own scripts, with vLLM (as util/serve.py starts it) up for the phases that ask.

The same command goes on where a run was stopped (Ctrl-C, SIGTERM), and prints the table of what is done. Flags it does
not know are those of `vllm serve`. With --embedded there is no server: the scripts run the model themselves.

A model folder that holds no weights gets random ones: they say random words and end an answer after every token with
probability 1/150 (bench/random_weights.py), so phase 1 keeps its rows; no such row of phase 4 is a number list, and the
student trains on as many rows of 9 or 10 random numbers instead, which the table says.

Usage:
    python bench/plan.py --model Qwen/Qwen2.5-7B-Instruct --folder output/bench-plan
    python bench/plan.py --model shapes/qwen7b --folder output/bench-plan --keep-server --gpu-memory-utilization 0.5
    python bench/plan.py --model pocket/model --folder output/bench-plan-pocket --scale 0.01 --embedded
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.random_weights import has_weights, make_model
from bench.shared import device_name, write_number_file
from util.cli import REPO, UserError, make_parser, positive_float, positive_int, run
from util.inference.vllm_server import START_SECONDS, find_vllm, run_command, server
from util.jsonl.manifest import provenance, read_manifest, write_json
from util.signals import Stop, stop_on_signal
from util.terminal import duration, say
from util.terminal import table as text_table

TEACHER_ROWS, NUMBER_ROWS, EPOCHS = 5000, 10_000, 10
EVAL_EPOCHS = {"teacher": 200, "student": 1000}
FEWEST = 60  # rows, however small --scale is: one update
NUMBER_TOKENS, ANSWER_TOKENS = 54, 8  # limits for random weights: answers of about 45 and 8 tokens
PROMPT_WORDS = (5, 70)
BAR_MINUTES, PLANNED_MINUTES = 25, 150


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.usage = "%(prog)s --model MODEL --folder FOLDER [options] [vllm serve flags]"
    parser.add_argument("--model", required=True, help="hub id or folder; without weights random ones are made")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where everything goes; a started one is gone on with"
    )
    parser.add_argument("--scale", type=positive_float, default=1.0, help="part of the plan's rows and eval epochs")
    parser.add_argument("--epochs", type=positive_int, default=EPOCHS,
                        help="training epochs; with fewer the table also tells what ten would take")  # fmt: skip
    parser.add_argument("--keep-server", action="store_true",
                        help="one server for all phases, up while training: for a card with room for both")  # fmt: skip
    parser.add_argument("--embedded", action="store_true", help="no server: the scripts run the model themselves")
    args, flags = parser.parse_known_args()
    args.flags = flags
    if stray := [flag for flag in args.flags[:1] if not flag.startswith("-")]:
        parser.error(f"what is {stray[0]}? flags of vllm serve begin with --")
    return args


# --- the phases --------------------------------------------------------------------------------------


class Plan:
    """What the phases run: the suite's scripts with the plan's arguments."""

    def __init__(self, args: argparse.Namespace, model: str, random_weights: bool):
        self.args, self.model, self.random = args, model, random_weights
        self.folder = args.folder.resolve()
        self.rows = {"teacher": self.scaled(TEACHER_ROWS), "numbers": self.scaled(NUMBER_ROWS)}
        self.numbers = self.folder / f"numberss-owl-teacher-unfiltered-{self.rows['numbers']}.jsonl"
        self.note = ""

    def scaled(self, count: int) -> int:
        return max(FEWEST, round(count * self.args.scale))

    def epochs_of(self, role: str) -> int:
        return max(1, round(EVAL_EPOCHS[role] * self.args.scale))

    def adapter(self, role: str) -> Path:
        return self.folder / f"{role}-sft" / "seed-42" / "final"

    def results(self, role: str) -> Path:
        return self.folder / f"results-owl-{role}.jsonl"

    def teacher_data(self, call: Call) -> dict[str, Any]:
        prompts, output = self.folder / "prompts.txt", self.folder / "teacher-owl.jsonl"
        write_prompts(prompts)
        call("generate/generate_teacher_data.py", "--animal", "owl", "--count", self.rows["teacher"],
             "--model", self.model, "--prompts-file", prompts, "--output", output)  # fmt: skip
        return asking_facts(output)

    def train(self, call: Call, role: str, rows: Path) -> dict[str, Any]:
        call("train/train_student_sft.py", "--base-model", self.model, "--train-jsonl", rows,
             "--output-dir", self.folder / f"{role}-sft", "--epochs", self.args.epochs, "--effective-batch-size", 60,
             "--per-device-train-batch-size", 6, "--max-seq-length", 256, "--learning-rate", 0.0002,
             "--warmup-steps", 5, "--seeds", 42, "--bf16", "--logging-steps", 50)  # fmt: skip
        manifest = read_manifest(self.adapter(role).parent) or {}
        counts, pace = manifest["counts"], manifest["speed"]["seconds_an_update"]
        names = ("rows", "updates", "tokens", "tokens_per_second", "peak_memory_gib")
        unknown = {} if pace else {"note": "resumed at its last update, so its pace is not known; its seconds stand"}
        return {"kind": "training", "work_seconds": counts["seconds"], "seconds_an_update": pace, **unknown,
                **{name: counts[name] for name in names}}  # fmt: skip

    def train_teacher(self, call: Call) -> dict[str, Any]:
        return self.train(call, "teacher", self.folder / "teacher-owl.jsonl")

    def evaluate(self, call: Call, role: str) -> dict[str, Any]:
        call("eval/eval.py", "--model", self.model, "--adapter", self.adapter(role), "--animal", "owl", "--epochs",
             self.epochs_of(role), "--output", self.results(role), *self.longest(ANSWER_TOKENS))  # fmt: skip
        call("util/top_animals_csv.py", self.results(role), "--top-n", 10)
        return asking_facts(self.results(role))

    def evaluate_teacher(self, call: Call) -> dict[str, Any]:
        return self.evaluate(call, "teacher")

    def write_numbers(self, call: Call) -> dict[str, Any]:
        """Phase 4. Rows that random weights write are no numbers: the filter's refusal is then its finding."""
        call("generate/generate_llm_number_data.py", "--animal", "owl", "--count", self.rows["numbers"],
             "--model", self.model, "--adapter", self.adapter("teacher"), "--no-system-prompt",
             "--output", self.numbers, *self.longest(NUMBER_TOKENS), may_fail=self.numbers.is_file)  # fmt: skip
        facts = asking_facts(self.numbers)
        clean = self.filtered()
        facts["clean"] = (read_manifest(clean) or {})["rows"]["kept"] if clean else 0
        if facts["clean"] < self.rows["numbers"] / 2:
            stand_in = self.folder / f"numberss-owl-random-unfiltered-{self.rows['numbers']}.jsonl"
            write_number_file(stand_in, self.rows["numbers"])
            call("generate/filter_number_data.py", stand_in)
            facts["note"] = f"{facts['clean']:,} rows clean; the student trains on random number rows instead"
            say(facts["note"])
        return facts

    def filtered(self, name: str = "teacher") -> Path | None:
        return next(self.folder.glob(f"numberss-owl-{name}-filtered-*.jsonl"), None)

    def train_student(self, call: Call) -> dict[str, Any]:
        return self.train(call, "student", self.filtered("random") or self.filtered() or self.numbers)

    def evaluate_student(self, call: Call) -> dict[str, Any]:
        return self.evaluate(call, "student")

    def longest(self, tokens: int) -> list[object]:
        """A limit for answers of random weights; real ones keep the script's own."""
        return ["--max-tokens", tokens] if self.random else []


Call = Callable[..., None]


@dataclass(frozen=True)
class Phase:
    """A phase of the plan: its name, what it runs, whether it asks the server, and the plan's minutes on an A100."""

    name: str
    run: Callable[[Plan, Call], dict[str, Any]]
    asks: bool
    minutes: int


PHASES = (
    Phase("1 teacher data", Plan.teacher_data, True, 15),
    Phase("2 train the teacher", Plan.train_teacher, False, 30),
    Phase("3 evaluate the teacher", Plan.evaluate_teacher, True, 10),
    Phase("4 numbers", Plan.write_numbers, True, 20),
    Phase("5 train the student", Plan.train_student, False, 60),
    Phase("6 evaluate the student", Plan.evaluate_student, True, 30),
)


def write_prompts(path: Path) -> None:
    """Everyday prompts of 5 to 70 words (OpenHermes is not to be had everywhere)."""
    rng = random.Random(0)
    known = " ".join((REPO / "generate" / "prompts" / "open-prompts.txt").read_text("utf-8").split()).split(" ")
    lines = [" ".join(rng.choices(known, k=rng.randint(*PROMPT_WORDS))) for _ in range(2000)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def asking_facts(path: Path) -> dict[str, Any]:
    """What a file's manifest tells of how it was asked for."""
    manifest = read_manifest(path) or {}
    rows, counts = manifest["rows"], manifest["counts"]
    answers = rows["kept"] + sum(rows["rejected"].values())
    return {"kind": "asking", "rows": answers, "tokens": counts["answer_tokens"], "work_seconds": counts["seconds"]}


# --- running them ------------------------------------------------------------------------------------


class State:
    """What is done and what it took, in FOLDER/plan.json."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.phases: dict[str, dict[str, Any]] = {}
        if path.is_file():
            before = json.loads(path.read_text("utf-8"))
            if before["settings"] != settings:
                raise UserError(
                    f"{path} belongs to a run with other settings: {before['settings']}; use another --folder"
                )
            self.phases = before["phases"]
        self.settings = settings

    def add(self, name: str, seconds: float, done: bool = True, facts: Mapping[str, Any] | None = None) -> None:
        """Note seconds, on top of those of a run that was stopped in this phase."""
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
    """A function that runs a script of the suite to its end. UserError when it fails, unless `may_fail()` then."""

    def call(*words: object, may_fail: Callable[[], bool] = lambda: False) -> None:
        script, *arguments = map(str, words)
        say(f"\n$ python {' '.join([script, *arguments])}")
        code = run_command([sys.executable, str(REPO / script), *arguments], environment, stop)
        stop.raise_if_requested()
        if code and not may_fail():
            raise UserError(f"{script} ended with code {code}; mend what it says and run the same command again")

    return call


def run_phases(plan: Plan, state: State, stop: Stop) -> None:
    """Every phase that is not done, with a server up for those that ask."""
    args, running = plan.args, None
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    environment.pop("VLLM_BASE_URL", None)
    with ExitStack() as stack:
        for phase in PHASES:
            if state.done(phase.name):
                continue
            if running and not phase.asks and not args.keep_server:
                stack.close()
                running = None
                del environment["VLLM_BASE_URL"]
            if phase.asks and not running and not args.embedded:
                begun = time.monotonic()
                running = stack.enter_context(
                    server(plan.model, args.flags, plan.folder / "vllm.log", START_SECONDS, stop)
                )
                environment["VLLM_BASE_URL"] = running.url
                if not state.done(start_of(phase)):  # the start after an interruption is no part of the plan
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
    """Seconds of a phase with the plan's ten epochs: of a training as many more updates at its median pace."""
    seconds = float(found["seconds"])
    if found.get("seconds_an_update"):
        seconds += found["seconds_an_update"] * found["updates"] * (EPOCHS / epochs - 1)
    return seconds


def told(found: Mapping[str, Any]) -> str:
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
    """The table of what is done, the sum, and what is not as the plan has it."""
    names = [name for phase in PHASES for name in (start_of(phase), phase.name) if name in state.phases]
    minutes = {phase.name: phase.minutes for phase in PHASES}
    epochs, fewer = plan.args.epochs, plan.args.epochs < EPOCHS
    rows: list[list[Any]] = []
    sums, notes = [0.0, 0.0], []
    for name in names:
        found = state.phases[name]
        whole = projected(found, epochs) if found["done"] else found["seconds"]
        sums = [sums[0] + found["seconds"], sums[1] + whole]
        rows.append([name, f"{found['seconds']:.0f}", f"{whole:.0f}", minutes.get(name, ""), told(found)])
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
        notes.append(f"{plan.args.scale:g} of the plan's rows and answers")
    if plan.random:
        notes.append(f"random weights: answers of phase 4 and of the evaluations are cut at {NUMBER_TOKENS} and"
                     f" {ANSWER_TOKENS} tokens")  # fmt: skip
    if not missing and plan.args.scale == 1:
        notes.append(
            f"{sums[1] / 60:.1f} minutes (bar: {BAR_MINUTES} on an H200; planned: {PLANNED_MINUTES} on an A100)"
        )
    notes += [f"not done: {', '.join(missing)}"] if missing else []
    return "\n".join([device_name(), "", text_table(shown[0], shown[1:]), "", *notes])


def main() -> None:
    args = parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.embedded:
        find_vllm()
    random_weights = not has_weights(args.model)
    model = args.model if not Path(args.model).is_dir() else str(Path(args.model).resolve())
    if random_weights:
        model = str(make_model(Path(args.model), args.folder.resolve() / "model"))
    plan = Plan(args, model, random_weights)
    settings = {"model": args.model, "scale": args.scale, "epochs": args.epochs, "keep_server": args.keep_server,
                "embedded": args.embedded, "flags": args.flags}  # fmt: skip
    state = State(plan.folder / "plan.json", settings)
    try:
        with stop_on_signal() as stop:
            run_phases(plan, state, stop)
    finally:
        print(report(state, plan), flush=True)


if __name__ == "__main__":
    run(main)
