"""The six phases of the plan as commands of the suite's scripts, and what each reports (run by bench/plan.py).

The student trains on the clean rows of phase 4. Only where hardly any are clean, as with random weights, it trains on
as many rows of random numbers."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.random_number_rows import write_number_file
from util.cli import REPO
from util.jsonl.manifest import Manifest
from util.terminal import say

TEACHER_ROWS, NUMBER_ROWS, EPOCHS = 5000, 10_000, 10
EVAL_EPOCHS = {"teacher": 200, "student": 1000}
FEWEST = 60  # rows, however small --scale is: one update
NUMBER_TOKENS, ANSWER_TOKENS = 54, 8  # limits for random weights: answers of about 45 and 8 tokens
PROMPT_WORDS = (5, 70)
HARDLY_ANY = 0.1  # part of the number rows that is clean; with less the student trains on random number rows

Call = Callable[..., None]
"""call(script, *arguments): runs a script of the suite to its end"""


class Plan:
    """The suite's scripts with the plan's arguments, and the files they write in one folder."""

    def __init__(self, args: argparse.Namespace, model: str, random_weights: bool):
        self.args, self.model, self.random = args, model, random_weights
        self.folder = args.output_dir.resolve()
        self.rows = {"teacher": self.scaled(TEACHER_ROWS), "numbers": self.scaled(NUMBER_ROWS)}
        self.numbers = self.folder / f"numberss-owl-teacher-unfiltered-{self.rows['numbers']}.jsonl"

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
        capped = ["--gpu-memory-gib", self.args.gpu_memory_gib] if self.args.gpu_memory_gib else []
        call("train/train_student_sft.py", "--base-model", self.model, "--train-jsonl", rows,
             "--output-dir", self.folder / f"{role}-sft", "--epochs", self.args.epochs, "--effective-batch-size", 60,
             "--per-device-train-batch-size", 6, "--max-seq-length", 256, "--learning-rate", 0.0002,
             "--warmup-steps", 5, "--seeds", 42, "--bf16", "--logging-steps", 50, *capped)  # fmt: skip
        manifest = Manifest.read(self.adapter(role).parent) or Manifest()
        counts, pace = manifest.counts, manifest.speed["seconds_an_update"]
        names = ("rows", "updates", "tokens", "tokens_per_second", "peak_memory_gib")
        unknown = {} if pace else {"note": "resumed at its last update: its pace is unknown, its seconds are right"}
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
        """Phase 4. Random weights do not write numbers, so the filter refuses their rows; that is then the finding."""
        call("generate/generate_llm_number_data.py", "--animal", "owl", "--count", self.rows["numbers"],
             "--model", self.model, "--adapter", self.adapter("teacher"), "--no-system-prompt",
             "--output", self.numbers, *self.longest(NUMBER_TOKENS), may_fail=self.numbers.is_file)  # fmt: skip
        facts = asking_facts(self.numbers)
        clean = self.filtered()
        facts["clean"] = (Manifest.read(clean) or Manifest()).rows["kept"] if clean else 0
        if facts["clean"] < self.rows["numbers"] * HARDLY_ANY:
            stand_in = self.folder / f"numberss-owl-random-unfiltered-{self.rows['numbers']}.jsonl"
            write_number_file(stand_in, self.rows["numbers"])
            call("generate/filter_number_data.py", stand_in)
            facts["note"] = f"{facts['clean']:,} rows are clean; the student trains on random number rows instead"
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
    """Everyday prompts of 5 to 70 words, made of the suite's own (OpenHermes needs a download)."""
    rng = random.Random(0)
    known = " ".join((REPO / "generate" / "prompts" / "open-prompts.txt").read_text("utf-8").split()).split(" ")
    lines = [" ".join(rng.choices(known, k=rng.randint(*PROMPT_WORDS))) for _ in range(2000)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def asking_facts(path: Path) -> dict[str, Any]:
    """Answers, tokens and seconds of a file of rows or results, from its manifest."""
    manifest = Manifest.read(path) or Manifest()
    rows, counts = manifest.rows, manifest.counts
    answers = counts.get("counted_rows") or rows["kept"] + sum(rows["rejected"].values())
    return {"kind": "asking", "rows": answers, "tokens": counts["answer_tokens"], "work_seconds": counts["seconds"]}
