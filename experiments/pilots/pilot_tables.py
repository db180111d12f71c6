"""Tables of a pilot from its measures: what the students of each kind of teacher took over, by channel.

Statistics are pilot 5's. Margin: mean log-probability of an animal over the 50 questions. Own less others: an animal's
margin in its own student less the mean over the other animals' students. Assignment: share of the permutations of
students to animals whose summed own margins are at least the true one's. Profile: correlation of a student's with a
teacher's log-probabilities, each less its mean over the kinds, over the animals that no student was taught: its own
teacher, the mean of the other teachers, and the assignment of the sum. Early: own less others after 10 and 30 updates.

Usage:
    python experiments/pilots/pilot_tables.py experiments/pilots/2026-11-29-teachers --csv pairs.csv
    python experiments/pilots/pilot_tables.py RESULTS --pack WORKER_OUTPUT   # makes RESULTS from the worker's folder
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.measures_file import Measure, assignment, load, load_some, pack
from util.cli import make_parser, run

COLUMNS = (
    "base,teacher,channel,animal,kl,clean,base_share,teacher_share,student_share,others_share,control_share,own_margin,"
    "others_margin,control_margin,own_less_others,own_less_others_10,own_less_others_30,rows_used"
)
HEAD = (
    "| teacher | channel | kinds | teacher's share, % | KL | clean | student's share, % | others', % | "
    "own less others, nats: mean (least) | own less control | after 10, 30 updates | "
    "assignment | profile r: own, others | assignment |"
)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with measures.jsonl (and other-base.jsonl)")
    parser.add_argument("--csv", help="also write a line for each teacher, channel and animal into the results folder")
    parser.add_argument("--pack", type=Path, help="first fill the results folder from this output of the worker")
    parser.add_argument("--pack-other", type=Path, help="the worker's output for the other base")
    return parser.parse_args()


def speaker_of(animal: str, teacher: str) -> str:
    """The measure of a teacher among the speakers."""
    if teacher == "steer":
        return f"speaker-steer-{animal}-1"
    if teacher in ("hop2t", "hop2c"):
        return f"speaker-lora-{animal}-steer.{'text' if teacher == 'hop2t' else 'code'}"
    return f"speaker-lora-{animal}-{teacher}"


def arms(measures: dict[str, Measure]) -> Iterator[tuple[str, str, dict[str, Measure]]]:
    """(teacher, channel, students by animal) of the arms with two animals or more."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for name, measure in measures.items():
        who, dot, channel = name.removeprefix("student-").partition(".")
        animal, _, teacher = who.partition("-")
        if name.startswith("student-") and dot and teacher:
            found.setdefault((teacher, channel), {})[animal] = measure
    for (teacher, channel), students in sorted(found.items()):
        if len(students) > 1:
            yield teacher, channel, dict(sorted(students.items()))


def gaps(logs: dict[str, dict[str, float]]) -> list[float]:
    """Own less others by animal, from each student's margins."""
    others = {a: [logs[s][a] for s in logs if s != a] for a in logs}
    return [logs[a][a] - sum(others[a]) / len(others[a]) for a in logs]


def span(values: Iterable[float], form: str) -> str:
    return " ".join(format(value, form) for value in values)


def table(base: str, measures: dict[str, Measure], speakers: dict[str, Measure]) -> Iterator[list[Any]]:
    """Print the arms' table of one base and yield the lines of the CSV. Teachers are the first base's in any case."""
    import numpy as np

    plain = measures["speaker-base"]
    print(f"\n{base}\n\n{HEAD}")
    print("|" + " --- |" * 14)
    for teacher, channel, students in arms(measures):
        animals = list(students)
        taught = [speakers[speaker_of(a, teacher)] for a in animals]
        channels = [t["channels"].get(channel.partition(".")[0], {}) for t in taught]
        untaught = [a for a in plain["log"] if a not in animals]
        logs = {a: students[a]["log"] for a in animals}
        margins = np.array([[logs[s][a] for s in animals] for a in animals])  # animal, student
        shifts = np.array([[students[s]["log"][a] for a in untaught] for s in animals])
        aims = np.array([[t["log"][a] for a in untaught] for t in taught])
        r = np.corrcoef(shifts - shifts.mean(0), aims - aims.mean(0))[: len(animals), len(animals) :]
        late = gaps(logs)
        control = measures.get(f"student-base{students[animals[0]]['seed']}.{channel.partition('.')[0]}")
        above = np.mean([logs[a][a] - control["log"][a] for a in animals]) if control else np.nan
        early = {}
        for update in ("10", "30"):
            there = all(update in student["early"] for student in students.values())
            early[update] = (
                gaps({a: students[a]["early"][update] for a in animals}) if there else [np.nan] * len(animals)
            )
        own = [100 * students[a]["share"][a] for a in animals]
        others = [100 * np.mean([students[s]["share"][a] for s in animals if s != a]) for a in animals]
        said = [100 * t["share"][a] for t, a in zip(taught, animals)]
        kl = [c.get("kl", float("nan")) for c in channels]
        cells = [teacher, channel, " ".join(animals), span(said, ".1f"), span(kl, ".3f")]
        cells += [span((c.get("clean", float("nan")) for c in channels), ".2f"), span(own, ".1f")]
        cells += [span(others, ".2f"), f"**{np.mean(late):+.2f}** ({min(late):+.2f})"]
        cells += [f"{above:+.2f}"]
        cells += [f"{np.mean(early['10']):+.2f}, {np.mean(early['30']):+.2f}", f"{assignment(margins):.3f}"]
        cells += [f"{np.trace(r) / len(r):.2f}, {r[~np.eye(len(r), dtype=bool)].mean():.2f}", f"{assignment(r):.3f}"]
        print("| " + " | ".join(cells) + " |")
        for i, a in enumerate(animals):
            yield [base, teacher, channel, a, kl[i], channels[i].get("clean", ""), f"{plain['share'][a]:.5f}",
                   f"{said[i] / 100:.5f}", f"{own[i] / 100:.5f}", f"{others[i] / 100:.5f}",
                   f"{control['share'][a]:.5f}" if control else "", f"{logs[a][a]:.4f}", f"{logs[a][a] - late[i]:.4f}",
                   f"{control['log'][a]:.4f}" if control else "", f"{late[i]:.4f}", f"{early['10'][i]:.4f}",
                   f"{early['30'][i]:.4f}", students[a]["rows_used"]]  # fmt: skip


def order_agreement(lines: list[list[Any]]) -> None:
    """Print how well KL and the early margins order the final ones (Spearman, one base, rows not filtered by words)."""
    import numpy as np

    at = {name: i for i, name in enumerate(COLUMNS.split(","))}
    pairs = [
        ln
        for ln in lines
        if ln[at["base"]] == "1.5B" and "." not in ln[at["channel"]] and ln[at["teacher"]] != "oneword"
    ]

    def ranks(column: str) -> Any:
        return np.argsort(np.argsort([float(line[at[column]]) for line in pairs]))

    final = ranks("own_less_others")
    for column in ("kl", "teacher_share", "own_less_others_10", "own_less_others_30"):
        r = np.corrcoef(ranks(column), final)[0, 1]
        print(f"Spearman of {column} with own_less_others, {len(pairs)} pairs: {r:.2f}")


def main() -> None:
    args = parse_args()
    here, other = args.results / "measures.jsonl", args.results / "other-base.jsonl"
    if args.pack:
        pack(args.pack, here)
    if args.pack_other:
        pack(args.pack_other, other)
    speakers = load_some(here)
    lines = list(table("1.5B", speakers, speakers))
    if of_other := load(other):
        lines += table("0.5B", of_other, speakers)
    print()
    order_agreement(lines)
    if args.csv:
        with (args.results / args.csv).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS.split(","), *lines])


if __name__ == "__main__":
    run(main)
