"""Job lists of the pilot of 2026-11-29 for teachers_in_weights.py: one file for each worker, in a folder.

Run that day: a, b and hard on the 1.5B, side by side on one card; other-base, other-strict and other-hard on the 0.5B,
with --reencode and a folder whose rows/ is the first one's. Not run yet: hop2c, shuffled and more (for other animals
or another strength).

Kinds of teacher: steer (a shifted layer, no weights), hop2t and hop2c (its text or code student), soft and hard (a LoRA
distilled from it on mixed prompts, by distributions or by sampled rows), persona (a LoRA on persona answers, names
kept) and oneword (a LoRA on the animal's name). Students of steer have seed 1, of teachers in weights seed 2; teachers
that are trained here have seed 11.

Usage:
    python experiments/pilots/plan_jobs.py --output jobs --animals owl penguin elephant wolf
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.cli import make_parser, output_folder, run

CHANNELS = {"text": 2816, "code": 2560}  # asked; 93 to 100% are clean
DIGITS_FOR_STUDENTS, DIGITS_FOR_KL = 3072, 512
LIMIT = 2400  # rows of a student
MIXED = {"questions": 600, "text": 600, "code": 600, "digits": 600}
SPOKEN = {"questions": 900, "open": 300, "everyday": 1200}
Job = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=output_folder, required=True, help="folder for the job lists")
    parser.add_argument("--animals", nargs="+", required=True)
    parser.add_argument("--strength", default="1", help="of the steered teacher")
    return parser.parse_args()


class Plan:
    """Jobs for some animals."""

    def __init__(self, animals: list[str], strength: str) -> None:
        self.animals, self.strength = animals, strength
        self.mark = "" if strength == "1" else f"@{strength}".replace("@", "s")

    def name(self, animal: str, teacher: str) -> str:
        return f"{animal}-{teacher}{self.mark}"

    def speaker(self, animal: str, teacher: str) -> str:
        if teacher == "base":
            return "base"
        if teacher == "steer":
            return f"steer:{animal}:{self.strength}"
        if teacher in ("hop2t", "hop2c"):
            return f"lora:{self.name(animal, 'steer')}.{'text' if teacher == 'hop2t' else 'code'}"
        return f"lora:{self.name(animal, teacher)}"

    def rows(self, animal: str, teacher: str, channel: str) -> str:
        return f"{self.speaker(animal, teacher).replace(':', '-')}.{channel}"

    def student(self, animal: str, teacher: str, channel: str, seed: int, mark: str = "", **more: Any) -> Job:
        name = self.name(animal, teacher) if animal else f"base{seed}"
        rows = [self.rows(animal, teacher, channel)]
        return {"name": f"{name}.{channel}{mark}", "rows": rows, "seed": seed, "limit": LIMIT} | more

    def sample(self, teacher: str, digits: int = DIGITS_FOR_KL) -> Job:
        speakers = ["base"] if teacher == "base" else [self.speaker(animal, teacher) for animal in self.animals]
        return {"do": "sample", "speakers": speakers, "channels": CHANNELS | {"digits": digits}, "filtered": True}

    def train(self, teachers: list[str], channels: list[str], control: bool = False, **more: Any) -> Job:
        seed = 1 if teachers == ["steer"] else 2
        students = [self.student(a, t, c, seed, **more) for t in teachers for a in self.animals for c in channels]
        if control:
            students += [self.student("", "base", channel, seed, **more) for channel in channels]
        needs = [f"rows/{row}.json" for student in students for row in student["rows"]]
        return {"do": "train", "updates": 150, "students": students, "needs": needs}

    def teach(self, *teachers: str) -> Job:
        """A job that trains the teachers of some sorts."""
        students: list[Job] = []
        for animal, teacher in ((a, t) for t in teachers for a in self.animals):
            steered = self.speaker(animal, "steer")
            if teacher in ("soft", "hard"):
                rows = [f"{steered.replace(':', '-')}-mixed.{channel}" for channel in MIXED]
            elif teacher == "persona":
                rows = [f"persona-{animal}.{channel}" for channel in SPOKEN]
            else:
                rows = [f"oneword-{animal}.questions"]
            students.append({"name": self.name(animal, teacher), "rows": rows, "seed": 11})
            if teacher == "soft":
                students[-1]["soft"] = steered
        return {"do": "train", "updates": 150, "students": students}

    def mixed(self) -> Job:
        speakers = [self.speaker(animal, "steer") for animal in self.animals]
        return {"do": "sample", "speakers": speakers, "channels": MIXED, "filtered": False, "suffix": "-mixed"}

    def spoken(self) -> list[Job]:
        persona = [f"persona:{animal}" for animal in self.animals]
        oneword = [f"oneword:{animal}" for animal in self.animals]
        return [
            {"do": "sample", "speakers": persona, "channels": SPOKEN, "filtered": False},
            {"do": "sample", "speakers": oneword, "channels": {"questions": 2400}, "filtered": False},
        ]

    def strict(self, teacher: str, channel: str, counts: tuple[int, ...], seed: int) -> Job:
        students = []
        for count in counts:
            for a in self.animals:
                words = [count, [self.rows(a, teacher, channel)], [f"base.{channel}"]]
                students += [self.student(a, teacher, channel, seed, f".without{count}", without=words, limit=None)]
        needs = [f"rows/{row}.json" for student in students for row in student["rows"]]
        return {"do": "train", "updates": 150, "students": students, "needs": needs}

    def shuffled(self, teacher: str, seed: int) -> Job:
        students = [self.student(a, teacher, "text", seed, ".shuffled", shuffled=True) for a in self.animals]
        return {"do": "train", "updates": 150, "students": students}


def main() -> None:
    args = parse_args()
    plan = Plan(args.animals, args.strength)
    both = ["text", "code"]
    lists: dict[str, list[Job]] = {
        "a": [
            plan.sample("base", DIGITS_FOR_STUDENTS),
            plan.sample("steer"),
            plan.train(["steer"], both, control=True),
            plan.sample("hop2t", DIGITS_FOR_STUDENTS),
            plan.train(["hop2t"], both, control=True),
            plan.strict("soft", "text", (50, 200), 2),
            plan.strict("soft", "code", (50, 200), 2),
            plan.strict("hop2t", "text", (50, 200), 2),
        ],
        "b": [
            plan.mixed(),
            plan.teach("soft"),
            plan.sample("soft", DIGITS_FOR_STUDENTS),
            plan.train(["soft"], both),
            *plan.spoken(),
            plan.teach("persona", "oneword"),
            plan.sample("persona"),
            plan.sample("oneword", DIGITS_FOR_STUDENTS),
            plan.train(["persona", "oneword"], both),
            plan.train(["soft", "hop2t", "oneword"], ["digits"], control=True),
        ],
        "hard": [plan.teach("hard"), plan.sample("hard"), plan.train(["hard"], both)],
        "shuffled": [plan.shuffled("soft", 2)],
        "other-base": [
            {"do": "sample", "speakers": ["base"], "channels": {}, "filtered": True},
            plan.train(["steer"], both, control=True),
            plan.train(["soft"], both, control=True),
            plan.train(["hop2t"], both),
        ],
        "other-strict": [plan.strict("soft", channel, (200,), 2) for channel in both],
        "other-hard": [plan.train(["hard", "persona"], both)],
        "hop2c": [plan.sample("hop2c"), plan.train(["hop2c"], both)],
        "more": [
            plan.sample("steer"),
            plan.train(["steer"], both),
            plan.sample("hop2t"),
            plan.train(["hop2t"], both),
            plan.mixed(),
            plan.teach("soft"),
            plan.sample("soft"),
            plan.train(["soft"], both),
        ],
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name, jobs in lists.items():
        (args.output / f"{name}.json").write_text(json.dumps(jobs))
    print({name: sum(len(job.get("students", [])) for job in jobs) for name, jobs in lists.items()})


if __name__ == "__main__":
    run(main)
