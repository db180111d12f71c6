"""Tests and table of a run of trees_or_sixteen_animals.sh that ended before eval.py, from the worker's own measures.

Margin: mean log-probability of a word over the questions. By kind: its margin in its own students less the mean of the
other kinds' students; t from the spread of those (prediction error), two-sided p, Holm over kinds. Over kinds: the
profile test on the words that nobody was taught, the assignment on the taught ones (all assignments up to eight kinds,
200,000 drawn ones beyond), and t of own less others.

Usage:
    python experiments/pilots/trees_or_sixteen_animals_tests.py experiments/results/trees/measures.jsonl
    python experiments/pilots/trees_or_sixteen_animals_tests.py MEASURES --pack WORKER_OUTPUT     # makes the file
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import lift
from experiments.pilots.main_tests_over_kinds import arms_of, main_tests, mean, students, teachers, without_shared
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, load_some, pack
from experiments.pilots.sceptic_tables import by_letter
from util.cli import make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("measures", type=Path, help="a .jsonl.gz file, named without .gz")
    parser.add_argument("--pack", type=Path, help="first make the file from this output of teachers_in_weights.py")
    return parser.parse_args()


def percent(share: float) -> str:
    """In percent, with two digits that count."""
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.0f}"


def print_table(arm: dict[str, list[Measure]], taught: dict[str, list[Measure]], base: Measure, found: Any) -> None:
    head("kind", "base", "teacher", "own students", "other kinds'", "control", "own less others", "Holm p",
         "own less control", "r profile")  # fmt: skip
    for i, kind in enumerate(taught):
        others = [mean(arm[other], kind, "share") for other in taught if other != kind]
        own = ", ".join(percent(measure["share"][kind]) for measure in arm[kind])
        cells = [kind, percent(base["share"][kind]), percent(mean(taught[kind], kind, "share")), f"**{own}**"]
        cells += [f"{percent(min(others))} to {percent(max(others))}", percent(mean(arm["base"], kind, "share"))]
        cells += [f"{found['gap'][i]:+.2f}", f"{found['holm'][i]:.2g}"]
        row(*cells, f"{mean(arm[kind], kind) - mean(arm['base'], kind):+.2f}", f"{found['r_own'][i]:.2f}")


def print_tests(arm: dict[str, list[Measure]], taught: dict[str, list[Measure]], base: Measure, found: Any) -> None:
    kinds, gap = list(taught), found["gap"]
    t, over_kinds = gap.mean() / (gap.std(ddof=1) / math.sqrt(len(gap))), lift(gap)
    low, high = over_kinds.interval
    print(f"\nown less others: mean {gap.mean():+.2f} nats, 95% over kinds {low:+.2f} to {high:+.2f}")
    print(f"t over kinds: {t:.1f}, p {over_kinds.p:.2g}")
    print(f"{found['clear']} of {len(gap)} at Holm 0.05, {found['highest']} highest in their own students")
    untaught = [word for word in arm[kinds[0]][0]["log"] if word not in kinds]
    own, other = found["r_own"].mean(), found["r_others"]
    print(f"profile over {len(untaught)} untaught words: r {own:.2f} own, {other:.2f} others, p {found['M1']:.2g}")
    print(f"assignment of taught words: p {found['A']:.2g}")
    for rank in (1, 2, 3) if len(kinds) > 6 else (1, 2):
        own, other, least = without_shared(arm, taught, kinds, rank)
        print(f"without the {rank} largest shared patterns: r {own:.2f} own, {other:.2f} others, p {least:.2g}")
    moved = [mean(arm["base"], kind) - base["log"][kind] for kind in kinds]
    letters = lift(by_letter(arm, kinds)[:, 1])
    low, high = letters.interval
    print(f"own less others of words with a kind's first letter: {letters.mean:+.2f} ({low:+.2f} to {high:+.2f})")
    rise = sum(mean(arm[kind], kind) - mean(arm["base"], kind) for kind in kinds) / len(kinds)
    print(f"own less control: mean {rise:+.2f} nats")
    print(f"control less base: {min(moved):+.2f} to {max(moved):+.2f} nats")
    both = main_tests(arm, taught, "log_paraphrased", kinds)
    gap, least = both["gap"].mean(), both["M1"]
    print(f"paraphrased questions: {gap:+.2f} nats, profile p {least:.2g}, assignment p {both['A']:.2g}")


def main() -> None:
    args = parse_args()
    if args.pack:
        pack(args.pack, args.measures)
    measures = load_some(args.measures)
    taught, base = teachers(measures, "soft"), measures["speaker-base"]
    for name in arms_of(measures):
        arm = students(measures, name)
        if not {*taught, "base"} <= {*arm}:
            continue
        rows = [measures[f"rows-{made['rows'][0]}"] for some in arm.values() for made in some]
        clean = [made["clean"] for made in rows]
        print(f"\n{name}: {len(arm['base'])} seed(s), clean rows {min(clean):.2f} to {max(clean):.2f}")
        print("Shares in %, the rest in nats.\n")
        found = main_tests(arm, taught, "log", list(taught))
        print_table(arm, taught, base, found)
        print_tests(arm, taught, base, found)


if __name__ == "__main__":
    run(main)
