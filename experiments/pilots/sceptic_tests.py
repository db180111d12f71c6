"""The sceptic's later arms: no word with the animal's first letter, as many plain rows, shuffled words, rows that a
judge does not guess, and a base of another family.

A line for each arm: an animal's log-probability in its own students less that in the other animals' ("own less
others"), the same less that of the 1.5B's students on plain rows of these seeds (paired by animal), own less control
(students on the base's rows, filtered alike), own less others less that of other animals with the same first letter,
and tests M1 and A of confirm_tests.py. RESULTS has the measures as sceptic.jsonl.gz (Qwen2.5-Coder-1.5B, plain rows
too) and sceptic-smollm2.jsonl.gz (SmolLM2-135M on the 1.5B's rows).

Usage:
    python experiments/pilots/sceptic_tests.py experiments/results/qwen2.5-1.5b
    python experiments/pilots/sceptic_tests.py RESULTS --pack WORKER_OUTPUT --pack-smollm2 OTHER_OUTPUT   # makes them
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.matrix import lift
from experiments.pilots.kind_tests import ANIMALS, arms_of, main_tests, mean, students, teachers
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, load, load_some, pack
from experiments.pilots.sceptic_tables import by_letter
from util.cli import make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with the measures")
    parser.add_argument("--pack", type=Path, help="first make sceptic.jsonl.gz from this output of the worker")
    parser.add_argument("--pack-smollm2", type=Path, help="and sceptic-smollm2.jsonl.gz from this one")
    return parser.parse_args()


def ends(values: Any) -> str:
    """Mean and 95% interval over animals."""
    found = lift(values)
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(found.mean, *found.interval)


def less_control(measures: dict[str, Measure], arm: dict[str, list[Measure]], name: str) -> str:
    """An animal's own students less the control's: on rows filtered alike, if there are such, or on plain rows."""
    control = {
        animal: students(measures, f"{name}-of-{animal}").get("base") or arm.get("base", []) for animal in ANIMALS
    }
    if not all(control.values()):
        return ""
    import numpy as np

    return ends(np.array([mean(arm[animal], animal) - mean(control[animal], animal) for animal in ANIMALS]))


def print_arms(base: str, measures: dict[str, Measure], plain: dict[str, Measure]) -> None:
    """The arms of one base beside the 1.5B's students on the plain rows of the seeds that an arm has."""
    taught = teachers(plain, "soft")
    for name in arms_of(measures):
        arm, channel = students(measures, name), name.partition(".")[0]
        if not {*ANIMALS} <= {*arm}:
            continue
        seeds = {made["seed"] for made in arm[ANIMALS[0]]}
        usual = {
            kind: [made for made in some if made["seed"] in seeds] for kind, some in students(plain, channel).items()
        }
        found = main_tests(arm, taught)
        gap, letters = found["gap"], by_letter(arm)
        used = [made["rows_used"] for animal in ANIMALS for made in arm[animal]]
        whole = [len(usual.get(animal, [])) == len(seeds) for animal in ANIMALS]
        cells = [base, name, len(seeds), f"{min(used):,} to {max(used):,}", *(f"{value:+.2f}" for value in gap)]
        cells += [f"**{ends(gap)}**", ends(gap - main_tests(usual, taught)["gap"]) if all(whole) else ""]
        cells += [less_control(measures, arm, name), ends(letters[:, 0] - letters[:, 1])]
        row(*cells, f"{found['M1']:.2g}", f"{found['r_own'].mean():.2f}", f"{found['A']:.2g}")


def print_difference(measures: dict[str, Measure], other: dict[str, Measure]) -> None:
    """What the base that wrote the rows takes over and the other does not, for the arms of both."""
    print()
    head("arm", "1.5B less SmolLM2-135M: own less others", "own less its letter's", "animals with its letter")
    for name in sorted({*arms_of(measures)} & {*arms_of(other)}):
        arms = students(measures, name), students(other, name)
        if all({*ANIMALS} <= {*arm} for arm in arms):
            one, two = (by_letter(arm) for arm in arms)
            apart = one - two
            row(name, *(ends(values) for values in (apart[:, 0], apart[:, 0] - apart[:, 1], apart[:, 1])))


def main() -> None:
    args = parse_args()
    for source, name in ((args.pack, "sceptic"), (args.pack_smollm2, "sceptic-smollm2")):
        if source:
            pack(source, args.results / f"{name}.jsonl")
    plain, other = load_some(args.results / "sceptic.jsonl"), load(args.results / "sceptic-smollm2.jsonl")
    head("base", "arm", "seeds", "rows", *ANIMALS, "own less others (95% over animals)", "less plain rows, 1.5B",
         "own less control", "own less its letter's", "M1 p", "r own", "A p")  # fmt: skip
    print_arms("1.5B", plain, plain)
    print_arms("SmolLM2-135M", other, plain)
    print_difference(plain, other)


if __name__ == "__main__":
    run(main)
