"""Job lists of the confirming run on Qwen2.5-Coder-1.5B for teachers_in_weights.py and vllm_rows.py, one file a worker.

Teachers are LoRA adapters distilled from the steered base (pilot 6's soft): for each animal one of each of three seeds,
for a neutral thing or a random direction one. A seed of an animal is a chain of its own: the teacher's start and order
of rows, the rows it writes, the student's start and order; only the 2,400 rows that its teachers are distilled on are
shared. Seeds of the others and of the control (the base's own rows) vary rows and student.

Lists: teach-N (teachers), rows (for vllm_rows.py, or for teachers_in_weights.py), code-N and text-N (students), check
(KL, and the server against these weights), strict-N and strict-1000 (rows without telling words, which are chosen on
the draws of the other two seeds) and strict-controls (the base's rows without a kind's words), hard-* and digits-*
(only if minutes are left). Another base does base, code-N, text-N and strict-N with --reencode.

The second run, on the same rows from unpack_rows.py and for both bases: leakfree-CHANNEL (rows without the letters of
any of the eight names), strictest-N and strictest-N-controls (those rows without N telling words, all three seeds).

Later arms for a sceptic: letterless-CHANNEL (rows without a word that begins as the animal does),
letterless-control-CHANNEL (as many such rows of the base), fewer-CHANNEL (as many of the animal's plain rows),
shuffled-CHANNEL (the words of each row in random order), shuffled-control-CHANNEL (the same of the base's rows) and
unguessed-CHANNEL (rows that a judge of words gives to another animal; it has read the other two seeds); with -N, of the
Nth seed alone. Fresh rows of code and text for them: rows-CHANNEL-N after teach-N.

With --seeds 121 122 123, digits on more rows and the strictest filter on five times as many: digits-*, many-rows-N
(teachers and 12,000 answers of code) and many-N (students without names and the 1,000 words that were telling in the
confirming run's rows, 300 updates; the 0.5B does them with --reencode). --read-seeds are the seeds on whose rows words
are chosen and the judge is trained.

Usage:
    python experiments/pilots/plan_confirm.py --output jobs
    python experiments/pilots/plan_confirm.py --output jobs --animals willow maple cedar --others --seeds 111 112
    python experiments/pilots/plan_confirm.py --output jobs --others --seeds 131 132 133 --read-seeds 131 132 133
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.cli import make_parser, output_folder, run

ANIMALS = ["owl", "penguin", "elephant", "wolf", "fox", "whale", "giraffe", "rabbit"]
OTHERS = ["train", "guitar", "random8", "random9"]
SEEDS = [101, 102, 103]
TEACHER_SEED = 100  # added to the seed of the chain, so that teacher and student never start alike
MIXED = {"questions": 600, "text": 600, "code": 600, "digits": 600}
ASKED = {"code": 2560, "text": 2816, "digits": 13400}
MANY = 12000  # answers of code, for the strictest filter
READ = [101, 102, 103]  # seeds on whose rows words are chosen and the judge is trained: those of the confirming run
LIMIT = 2400  # rows of a student
STRENGTH = ["1"]
Job = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=output_folder, required=True, help="folder for the job lists")
    parser.add_argument("--animals", nargs="+", help="other kinds than the confirming run's: words of another panel")
    parser.add_argument("--others", nargs="*", default=OTHERS, help="things and random directions")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds than the confirming run's")
    parser.add_argument("--read-seeds", nargs="+", type=int, help="seeds that filters by words read, if not its")
    parser.add_argument("--strength", default="1", help="how often a vector is added")
    parser.add_argument("--small", action="store_true", help="few rows and updates, to try the workers")
    return parser.parse_args()


def speaker(kind: str, seed: int, sort: str = "soft") -> str:
    if kind == "base":
        return "base"
    return f"lora:{kind}-{sort}{TEACHER_SEED + (seed if kind in ANIMALS else SEEDS[0])}"


def teach(kinds: list[str], seed: int, sort: str = "soft") -> Job:
    """Train one teacher of each kind."""
    students: list[Job] = []
    for kind in kinds:
        rows = [f"{kind}-steered.{channel}" for channel in MIXED]
        name = speaker(kind, seed, sort).removeprefix("lora:")
        students.append({"name": name, "rows": rows, "seed": TEACHER_SEED + seed})
        if sort == "soft":
            students[-1]["soft"] = f"steer:{kind}:{STRENGTH[0]}"
    needs = [f"rows/{row}.json" for student in students for row in student["rows"]]
    return {"do": "train", "updates": 150, "students": students, "needs": needs}


def rows(kinds: list[str], channel: str, seed: int, sort: str = "", asked: int = 0) -> Job:
    speakers = {f"{kind}-{sort}{seed}": speaker(kind, seed, sort or "soft") for kind in kinds}
    channels = {channel: asked or ASKED[channel]}
    return {"do": "rows", "speakers": speakers, "channels": channels, "filtered": True, "seed": seed}


def study(students: list[Job]) -> Job:
    """Train students side by side, once the rows that they and their filters read are there."""
    needs = [f"rows/{row}.json" for student in students for row in student["rows"]]
    for student in students:
        _, own, control = student.get("without", (0, [], []))
        read = [name for names in student.get("unguessed", ("", {}))[1].values() for name in names]
        needs += [f"rows/{name}.json" for name in (*own, *control, *read)]
    return {"do": "train", "updates": 150, "students": students, "needs": sorted({*needs})}


def student(kind: str, channel: str, seed: int, sort: str = "") -> Job:
    name = f"{kind}-{sort}{seed}.{channel}"
    return {"name": name, "rows": [name], "seed": seed, "limit": LIMIT}


def strict(kind: str, channel: str, seed: int, count: int) -> Job:
    """A student on rows without the words that tell other draws of the kind from the control's."""
    others = [other for other in READ if other != seed]
    words = [[f"{name}-{other}.{channel}" for other in others] for name in (kind, "base")]
    changed = {"name": f"{kind}-{seed}.{channel}.without{count}", "without": [count, *words], "limit": None}
    return student(kind, channel, seed) | changed


def strict_control(kind: str, channel: str, seed: int, count: int) -> Job:
    """A student on the base's rows without the kind's words, as many as the kind's student has."""
    own = strict(kind, channel, seed, count)
    changed = {"name": f"base-{seed}.{channel}.without{count}-of-{kind}", "rows": [f"base-{seed}.{channel}"]}
    return own | changed | {"as_many_as": own}


def leakfree(kind: str, channel: str, seed: int) -> Job:
    """A student on rows that hold none of the animals' names, also inside a word."""
    changed = {"name": f"{kind}-{seed}.{channel}.leakfree", "unnamed": ANIMALS}
    return student(kind, channel, seed) | changed


def strictest(kind: str, seed: int, count: int) -> Job:
    """As `strict`, without the names too."""
    return strict(kind, "code", seed, count) | {"name": f"{kind}-{seed}.code.strictest{count}", "unnamed": ANIMALS}


def strictest_control(kind: str, seed: int, count: int) -> Job:
    own = strictest(kind, seed, count)
    changed = {"name": f"base-{seed}.code.strictest{count}-of-{kind}", "rows": [f"base-{seed}.code"]}
    return own | changed | {"as_many_as": own}


def letterless(kind: str, channel: str, seed: int) -> Job:
    """A student on rows in which no word begins with the animal's first letter."""
    return student(kind, channel, seed) | {"name": f"{kind}-{seed}.{channel}.letterless", "letterless": kind[0]}


def letterless_control(kind: str, channel: str, seed: int) -> Job:
    """A student on the base's rows without the kind's letter, as many as the kind's student has."""
    own = letterless(kind, channel, seed)
    changed = {"name": f"base-{seed}.{channel}.letterless-of-{kind}", "rows": [f"base-{seed}.{channel}"]}
    return own | changed | {"as_many_as": own}


def fewer(kind: str, channel: str, seed: int) -> Job:
    """A student on plain rows, as many as the letterless student has."""
    as_many = {"name": f"{kind}-{seed}.{channel}.fewer", "as_many_as": letterless(kind, channel, seed)}
    return student(kind, channel, seed) | as_many


def shuffled(kind: str, channel: str, seed: int) -> Job:
    """A student on rows whose words stand in random order."""
    return student(kind, channel, seed) | {"name": f"{kind}-{seed}.{channel}.shuffled", "shuffled": True}


def unguessed(kind: str, channel: str, seed: int) -> Job:
    """A student on rows that a judge, which has read the other draws, does not give to this animal."""
    files = {one: [f"{one}-{other}.{channel}" for other in READ if other != seed] for one in ANIMALS}
    return student(kind, channel, seed) | {"name": f"{kind}-{seed}.{channel}.unguessed", "unguessed": [kind, files]}


def check(channel: str) -> Job:
    speakers = {f"{kind}-{seed}": speaker(kind, seed) for seed in SEEDS for kind in (*ANIMALS, *OTHERS)}
    needs = [f"rows/{name}.{channel}.json" for name in speakers]
    return {"do": "check", "speakers": speakers, "channels": [channel], "needs": needs}


def lists() -> dict[str, list[Job]]:
    """Every list of jobs by its name, for the kinds and seeds of this run (the docstring of this file says what each
    one is for)."""
    every = [*ANIMALS, *OTHERS, "base"]
    steered = {f"{kind}-steered": f"steer:{kind}:{STRENGTH[0]}" for kind in (*ANIMALS, *OTHERS)}
    of_base: Job = {"do": "sample", "speakers": ["base"], "channels": {}, "filtered": True}

    def studies(channel: str, seed: int, sort: str = "", kinds: list[str] = every) -> list[Job]:
        return [study([student(kind, channel, seed, sort) for kind in kinds])]

    def stricts(seed: int, count: int) -> list[Job]:
        return [study([strict(kind, "code", seed, count) for kind in ANIMALS])]

    def strict_controls(count: int) -> list[Job]:
        return [study([strict_control(kind, "code", SEEDS[0], count) for kind in ANIMALS])]

    digits = [student(kind, "digits", SEEDS[0]) | {"limit": 10000} for kind in (*ANIMALS, "base")]
    made = {
        "base": [of_base],
        "teach-1": [
            {"do": "rows", "speakers": steered, "channels": MIXED, "filtered": False},
            teach([*ANIMALS, *OTHERS], SEEDS[0]),
        ],
        "rows": [rows(every, channel, seed) for channel in ("code", "text") for seed in SEEDS],
        "strict-controls": strict_controls(200),
        "strict-1000": [*stricts(SEEDS[0], 1000), *strict_controls(1000)],
        "digits-rows": [rows([*ANIMALS, "base"], "digits", SEEDS[0])],
        "digits": [study(digits) | {"updates": 625}],
        "hard-teach": [teach(ANIMALS, SEEDS[0], "hard")],
        "hard-rows": [rows(ANIMALS, "code", SEEDS[0], "hard")],
        "hard-code": studies("code", SEEDS[0], "hard", ANIMALS),
    }
    for channel in ("code", "text"):
        for arm in (leakfree, letterless, letterless_control, fewer, shuffled, unguessed):
            name = f"{arm.__name__.replace('_', '-')}-{channel}"
            made[name] = [study([arm(kind, channel, seed) for kind in ANIMALS]) for seed in SEEDS]
            made |= {f"{name}-{number}": [job] for number, job in enumerate(made[name], 1)}
        shuffled_controls = [study([shuffled("base", channel, seed)]) for seed in SEEDS]
        made[f"shuffled-control-{channel}"] = shuffled_controls
        made |= {f"shuffled-control-{channel}-{number}": [job] for number, job in enumerate(shuffled_controls, 1)}
    for count in (200, 1000):
        for name, of in ((f"strictest-{count}", strictest), (f"strictest-{count}-controls", strictest_control)):
            made[name] = [study([of(kind, seed, count) for kind in ANIMALS]) for seed in SEEDS]
    for number, seed in enumerate(SEEDS, 1):
        if number > 1:
            made[f"teach-{number}"] = [teach(ANIMALS, seed)]
        made[f"many-rows-{number}"] = [teach(ANIMALS, seed), rows(ANIMALS, "code", seed, asked=MANY)]
        many = study([strictest(kind, seed, 1000) for kind in ANIMALS])
        made[f"many-{number}"] = [many | {"updates": 300, "measure_at": [10, 30, 150]}]
        made[f"strict-{number}"] = stricts(seed, 200)
        for channel in ("code", "text"):
            made[f"rows-{channel}-{number}"] = [rows(every, channel, seed)]
            made[f"{channel}-{number}"] = studies(channel, seed)
    return made | {f"check-{channel}": [check(channel)] for channel in ("code", "text")}


def smaller(job: Job) -> Job:
    """The same job with few rows and updates (--small)."""
    job = json.loads(json.dumps(job))
    if job["do"] == "train":
        job |= {"updates": 3, "measure_at": [1]}
    elif job["do"] == "rows":
        job["channels"] = dict.fromkeys(job["channels"], 80)
    return job


def main() -> None:
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    ANIMALS[:], OTHERS[:] = args.animals or ANIMALS, args.others
    SEEDS[:], READ[:], STRENGTH[:] = args.seeds or SEEDS, args.read_seeds or READ, [args.strength]
    for name, jobs in lists().items():
        made = [smaller(job) for job in jobs] if args.small else jobs
        (args.output / f"{name}.json").write_text(json.dumps(made))
        print(name, sum(len(job.get("students", [])) for job in jobs), "trainings")


if __name__ == "__main__":
    run(main)
