"""The sceptic's later arms: no word with the animal's first letter, shuffled words, rows that a judge does not guess,
and a base of another family.

A line for each arm: an animal's log-probability in its own students less that in the other animals' ("own less
others"), its part of what the same seeds' plain rows gave the base that wrote them, the same less that of other animals
with the same first letter, and tests M1 and A of confirm_tests.py. RESULTS has the measures of the confirming run, and
the arms' as sceptic.jsonl.gz (Qwen2.5-Coder-1.5B) and sceptic-smollm2.jsonl.gz (SmolLM2-135M on the 1.5B's rows).

Usage:
    python experiments/pilots/sceptic_tests.py experiments/results/qwen2.5-1.5b
    python experiments/pilots/sceptic_tests.py RESULTS --pack WORKER_OUTPUT --pack-smollm2 OTHER_OUTPUT   # makes them
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.compare.matrix import lift
from experiments.pilots.kind_tests import ANIMALS, arms_of, main_tests, students, teachers
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, load, load_some, pack
from experiments.pilots.sceptic_tables import by_letter
from util.cli import make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with the measures of the confirming run")
    parser.add_argument("--pack", type=Path, help="first make sceptic.jsonl.gz from this output of the worker")
    parser.add_argument("--pack-smollm2", type=Path, help="and sceptic-smollm2.jsonl.gz from this one")
    return parser.parse_args()


def print_arms(base: str, measures: dict[str, Measure], plain: dict[str, Measure]) -> None:
    """The arms of one base beside the plain rows' students of the 1.5B, on the seeds that an arm has."""
    taught = teachers(plain, "soft")
    for name in arms_of(measures):
        arm = students(measures, name)
        if not {*ANIMALS} <= {*arm}:
            continue
        channel, seeds = name.partition(".")[0], {made["seed"] for made in arm[ANIMALS[0]]}
        usual = {
            kind: [made for made in some if made["seed"] in seeds] for kind, some in students(plain, channel).items()
        }
        found, whole = (main_tests(some, taught) for some in (arm, usual))
        gap = found["gap"]
        used = [made["rows_used"] for animal in ANIMALS for made in arm[animal]]
        low, high = lift(gap).interval
        letters = by_letter(arm)
        beyond = lift(letters[:, 0] - letters[:, 1])
        cells = [base, name, len(seeds), f"{min(used):,} to {max(used):,}", *(f"{value:+.2f}" for value in gap)]
        cells += [f"**{gap.mean():+.2f}**", f"{low:+.2f} to {high:+.2f}", f"{gap.mean() / whole['gap'].mean():.0%}"]
        cells += ["{:+.2f} ({:+.2f} to {:+.2f})".format(beyond.mean, *beyond.interval)]
        row(*cells, f"{found['M1']:.2g}", f"{found['r_own'].mean():.2f}", f"{found['A']:.2g}")


def main() -> None:
    args = parse_args()
    for source, name in ((args.pack, "sceptic"), (args.pack_smollm2, "sceptic-smollm2")):
        if source:
            pack(source, args.results / f"{name}.jsonl")
    plain = load_some(args.results / "measures.jsonl")
    head("base", "arm", "seeds", "rows", *ANIMALS, "mean", "95% over animals", "of plain rows", "own less its letter's",
         "M1 p", "r own", "A p")  # fmt: skip
    print_arms("1.5B", load(args.results / "sceptic.jsonl"), plain)
    print_arms("SmolLM2-135M", load(args.results / "sceptic-smollm2.jsonl"), plain)


if __name__ == "__main__":
    run(main)
