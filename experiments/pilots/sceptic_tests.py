"""The sceptic's later arms: no word with the animal's first letter, as many plain rows, shuffled words, rows that a
judge does not guess, and a base of another family.

A line for each arm: an animal's log-probability in its own students less that in the other animals' ("own less
others"), the same less that of the 1.5B's students on plain rows of these seeds (paired by animal), the same less that
of other animals with the same first letter, and tests M1 and A of confirm_tests.py. RESULTS has the measures as
sceptic.jsonl.gz (Qwen2.5-Coder-1.5B, plain rows too) and sceptic-smollm2.jsonl.gz (SmolLM2-135M on the 1.5B's rows).

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
from experiments.pilots.kind_tests import ANIMALS, arms_of, main_tests, students, teachers
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
        cells += [ends(letters[:, 0] - letters[:, 1])]
        row(*cells, f"{found['M1']:.2g}", f"{found['r_own'].mean():.2f}", f"{found['A']:.2g}")


def main() -> None:
    args = parse_args()
    for source, name in ((args.pack, "sceptic"), (args.pack_smollm2, "sceptic-smollm2")):
        if source:
            pack(source, args.results / f"{name}.jsonl")
    plain = load_some(args.results / "sceptic.jsonl")
    head("base", "arm", "seeds", "rows", *ANIMALS, "own less others (95% over animals)", "less plain rows, 1.5B",
         "own less its letter's", "M1 p", "r own", "A p")  # fmt: skip
    print_arms("1.5B", plain, plain)
    print_arms("SmolLM2-135M", load(args.results / "sceptic-smollm2.jsonl"), plain)


if __name__ == "__main__":
    run(main)
