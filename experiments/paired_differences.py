"""What a change of one parameter does to students that have everything else in common: differences of log odds.

For each value of a parameter: how far the students' own animal is above its control (log odds, mean over animals and
seeds with a 95% t interval), and the difference to every other value, paired by animal and seed. The log odds are those
of the mean share over the questions. It reads students.csv, so it works wherever the tables of an experiment are.

Usage:
    python experiments/paired_differences.py experiments/results/halves/pocket
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import lift
from experiments.experiment_tables import Record, panel_of, short_names
from experiments.stored_tables import experiment_of, read_table
from util.cli import UserError, make_parser, run
from util.terminal import table

Pair = tuple[str, int]  # animal and seed


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of an experiment's tables: .../EXPERIMENT/MODEL")
    return parser.parse_args()


def log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def own_students(records: Sequence[Record], panel: str) -> dict[Any, dict[Pair, tuple[float, float]]]:
    """{value of the parameter: {(animal, seed): (log odds of the student's own animal, rise over its control)}}."""
    found: dict[Any, dict[Pair, tuple[float, float]]] = {}
    for one in records:
        if one["animal"] == one["measured"]:
            own = log_odds(one["share"])
            pair = (str(one["animal"]), int(one["seed"]))
            found.setdefault(one[panel], {})[pair] = (own, own - log_odds(one["control_share"]))
    return found


def line_of(name: str, differences: Mapping[Pair, float]) -> tuple[str, ...]:
    """A line of the table: mean with 95% interval, p, how many are above zero, and each."""
    import numpy as np

    found = lift(np.array(list(differences.values())))
    low, high = found.interval
    each = ", ".join(f"{animal} {seed} {value:+.2f}" for (animal, seed), value in differences.items())
    mean = f"{found.mean:+.2f} ({low:+.2f} to {high:+.2f})"
    return name, mean, f"{found.p:.2g}", f"{found.above} of {len(differences)}", each


def lines_of(students: Mapping[Any, Mapping[Pair, tuple[float, float]]]) -> list[tuple[str, ...]]:
    """The lines of the table: each value against the control, and each two values."""
    names = short_names(list(students))
    lines = [
        line_of(f"{names[value]} less its control", {pair: rise for pair, (_, rise) in of.items()})
        for value, of in students.items()
    ]
    for one, other in combinations(students, 2):
        mine, theirs = students[one], students[other]
        both = {pair: mine[pair][0] - theirs[pair][0] for pair in mine if pair in theirs}
        if len(both) > 1:
            lines.append(line_of(f"{names[one]} less {names[other]}", both))
    return lines


def main() -> None:
    args = parse_args()
    experiment = experiment_of(args.folder)
    records = read_table(args.folder / "students.csv")
    panels = [panel for panel in experiment.panels if panel in experiment.varied]
    if not panels:
        raise UserError(f"{experiment.name} varies no parameter, so there is nothing to compare")
    for panel in panels:
        students = own_students(panel_of(experiment, records, panel), panel)
        header = ("log odds", "mean (95%)", "p", "above", "each")
        print(f"{panel}\n{table(header, lines_of(students), texts=True)}\n")


if __name__ == "__main__":
    run(main)
