"""The sceptic's later arms: no word with the animal's first letter, as many plain rows, shuffled words, rows that a
judge does not guess, and a base of another family.

First table: an animal's log-probability in its own students less that in the other animals' ("own less others").
Second: the same less that of the same base's students on plain rows (paired by animal); own less control (students on
the base's rows, changed alike if there are such, plain ones otherwise); how much more likely other animals with the
first letter of a student's animal are than in students of other letters, and own less others without that; how many
animals are highest in their own students, how many are clear singly (Holm 0.05), and tests M1 and A of
confirm_tests.py. Then pairs of animals with one letter, the two bases' difference, and own less others less the same
between control students on rows filtered for each animal. RESULTS has the measures as sceptic.jsonl.gz
(Qwen2.5-Coder-1.5B, plain rows too) and sceptic-smollm2.jsonl.gz (SmolLM2-135M on the 1.5B's rows).

Usage:
    python experiments/pilots/sceptic_tests.py experiments/results/qwen2.5-1.5b
    python experiments/pilots/sceptic_tests.py RESULTS --pack WORKER_OUTPUT --pack-smollm2 OTHER_OUTPUT   # makes them
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.main_tests_over_kinds import ANIMALS, arms_of, main_tests, mean, students, teachers
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, load, load_some, pack
from experiments.pilots.sceptic_tables import by_letter, ends
from util.cli import make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with the measures")
    parser.add_argument("--pack", type=Path, help="first make sceptic.jsonl.gz from this output of the worker")
    parser.add_argument("--pack-smollm2", type=Path, help="and sceptic-smollm2.jsonl.gz from this one")
    return parser.parse_args()


def control_of(measures: dict[str, Measure], name: str, animal: str) -> list[Measure]:
    """The control's students for an animal of an arm: on rows changed alike, if there are such, or on plain rows."""
    for arm in (f"{name}-of-{animal}", name, name.partition(".")[0]):
        if control := students(measures, arm).get("base"):
            return control
    return []


def of_same_seeds(some: dict[str, list[Measure]], seeds: set[int]) -> dict[str, list[Measure]]:
    return {kind: [made for made in of if made["seed"] in seeds] for kind, of in some.items()}


def whole(arm: dict[str, list[Measure]], seeds: set[int]) -> bool:
    return all({made["seed"] for made in arm.get(animal, [])} == seeds for animal in ANIMALS)


def tests_of(arm: dict[str, list[Measure]], taught: dict[str, list[Measure]]) -> dict[str, Any]:
    """As main_tests; without the teachers' measures the profile test is left out (NaN)."""
    if {*ANIMALS} <= {*taught}:
        return main_tests(arm, taught)
    return main_tests(arm, arm) | {"M1": math.nan, "r_own": math.nan}


def arms(measures: dict[str, Measure]) -> Iterator[tuple[str, dict[str, list[Measure]], set[int]]]:
    """Arms with students of every animal: name, students, seeds."""
    for name in arms_of(measures):
        arm = students(measures, name)
        seeds = {made["seed"] for made in arm.get(ANIMALS[0], [])}
        if seeds and whole(arm, seeds):
            yield name, arm, seeds


def print_animals(base: str, measures: dict[str, Measure], taught: dict[str, list[Measure]]) -> None:
    """Own less others by animal, a line for each arm."""
    for name, arm, seeds in arms(measures):
        gap = tests_of(arm, taught)["gap"]
        used = [made["rows_used"] for animal in ANIMALS for made in arm[animal]]
        rows = f"{min(used):,}" + f" to {max(used):,}" * (max(used) > min(used))
        row(base, name, len(seeds), rows, *(f"{value:+.2f}" for value in gap), f"**{ends(gap)}**",
            f"{statistics.median(gap):+.2f}")  # fmt: skip


def print_tests(base: str, measures: dict[str, Measure], taught: dict[str, list[Measure]]) -> None:
    """What each arm is compared with, and its tests."""
    import numpy as np

    for name, arm, seeds in arms(measures):
        found, letters = tests_of(arm, taught), by_letter(arm)
        plain = of_same_seeds(students(measures, name.partition(".")[0]), seeds)
        less_plain, less_control = "", ""
        if "." in name and whole(plain, seeds):
            less_plain = ends(found["gap"] - tests_of(plain, taught)["gap"])
        control = {animal: control_of(measures, name, animal) for animal in ANIMALS}
        control = of_same_seeds(control, seeds)
        if whole(control, seeds):
            gaps = [mean(arm[animal], animal) - mean(control[animal], animal) for animal in ANIMALS]
            less_control = ends(np.array(gaps))
        by_seed = [tests_of(of_same_seeds(arm, {seed}), taught)["A"] for seed in sorted(seeds)]
        profile = "" if math.isnan(found["M1"]) else f"{found['r_own'].mean():.2f}, {found['M1']:.2g}"
        row(base, name, less_plain, less_control, ends(letters[:, 1]), ends(letters[:, 0] - letters[:, 1]),
            found["highest"], found["clear"], profile, f"{found['A']:.2g}", f"{max(by_seed):.2g}")  # fmt: skip


def print_pairs(measures: dict[str, Measure]) -> None:
    """Between students of two animals with one letter, a filter of the letter is the same for both."""
    print()
    pairs = [(one, two) for one, two in permutations(ANIMALS, 2) if one[0] == two[0]]
    head("1.5B, arm", *(f"{one} in its students less in {two}'s" for one, two in pairs))
    for name, arm, _ in arms(measures):
        row(name, *(f"{mean(arm[one], one) - mean(arm[two], one):+.2f}" for one, two in pairs))


def print_difference(measures: dict[str, Measure], other: dict[str, Measure]) -> None:
    """What the base that wrote the rows takes over and the other does not, for the arms of both."""
    print()
    head("arm", "1.5B less SmolLM2-135M: own less others", "own less its letter's")
    both = {name: arm for name, arm, _ in arms(other)}
    for name, arm, _ in arms(measures):
        if name in both:
            apart = by_letter(arm) - by_letter(both[name])
            row(name, ends(apart[:, 0]), ends(apart[:, 0] - apart[:, 1]))


def print_filtered_alike(bases: dict[str, dict[str, Measure]]) -> None:
    """Own less others, less the same between control students whose rows went through the filters of these students."""
    print()
    head("base", "arm", "own less others", "the same in controls filtered alike", "difference", "median")
    for base, measures in bases.items():
        for name, arm, seeds in arms(measures):
            control = {animal: students(measures, f"{name}-of-{animal}").get("base", []) for animal in ANIMALS}
            if not whole(control, seeds):
                continue
            own, filtered = (tests_of(some, {})["gap"] for some in (arm, control))
            row(base, name, ends(own), ends(filtered), f"**{ends(own - filtered)}**",
                f"{statistics.median(own - filtered):+.2f}")  # fmt: skip


def main() -> None:
    args = parse_args()
    for source, name in ((args.pack, "sceptic"), (args.pack_smollm2, "sceptic-smollm2")):
        if source:
            pack(source, args.results / f"{name}.jsonl")
    plain, other = load_some(args.results / "sceptic.jsonl"), load(args.results / "sceptic-smollm2.jsonl")
    bases, taught = {"1.5B": plain, "SmolLM2-135M": other}, teachers(plain, "soft")
    head("base", "arm", "seeds", "rows", *ANIMALS, "own less others (95% over animals)", "median")
    for base, measures in bases.items():
        print_animals(base, measures, taught)
    print()
    head("base", "arm", "less its plain rows", "own less control", "other animals with its letter",
         "own less its letter's", "highest of 8", "clear of 8", "profile r, p", "A p",
         "largest A p of a seed")  # fmt: skip
    for base, measures in bases.items():
        print_tests(base, measures, taught)
    print_pairs(plain)
    print_difference(plain, other)
    print_filtered_alike(bases)


if __name__ == "__main__":
    run(main)
