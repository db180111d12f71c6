"""Check the moderated variance of experiments with many cells: how often its 95% interval holds the mean of the seeds.

Cells differ in the spread of their seeds as the pocket model's do, and a part of the luck of a seed is that of its
teacher, which cells share (in the experiments' tables deviations of seeds correlate by 0.3 to 0.5 between cells of one
animal).

Usage:
    python bench/moderated_coverage.py
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.intervals import share_interval, spread_of
from eval.compare.moderated_variance import moderated, prior_of
from util.cli import make_parser, natural_int, positive_int, run
from util.terminal import table

SEEDS, QUESTIONS = 3, 2  # questions do not scatter here: the interval is over seeds
FREEDOM, SPREAD = 5.8, 0.57  # of the cells' variances, in log odds (65 cells of the pocket model)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--experiments", type=positive_int, default=1000, help="simulated experiments per line")
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the simulation")
    return parser.parse_args()


def simulate(cells: int, shared: float, experiments: int, seed: int) -> tuple[float, float, float]:
    """(coverage of the moderated interval, of the plain one, ratio of their widths)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    held, widths = np.zeros(2), np.zeros(2)
    for _ in range(experiments):
        spreads = np.sqrt(FREEDOM * SPREAD**2 / rng.chisquare(FREEDOM, cells))
        teachers = rng.standard_normal((2, SEEDS))  # two animals
        luck = [
            spread * (math.sqrt(shared) * teachers[cell % 2] + math.sqrt(1 - shared) * rng.standard_normal(SEEDS))
            for cell, spread in enumerate(spreads)
        ]
        arms = [spread_of(np.repeat(some[:, np.newaxis], QUESTIONS, axis=1), linear=True) for some in luck]
        prior = prior_of(arms)
        for arm in arms:
            for place, one in enumerate((moderated(arm, prior), arm)):
                low, high = share_interval(one)
                held[place] += low <= 0 <= high
                widths[place] += high - low
    held /= experiments * cells
    return float(held[0]), float(held[1]), float(widths[0] / widths[1])


def main() -> None:
    args = parse_args()
    lines = []
    for cells in (10, 20, 30):
        for shared in (0.0, 0.3, 0.6, 0.9):
            moderate, plain, width = simulate(cells, shared, args.experiments, args.seed)
            lines.append((cells, shared, f"{moderate:.1%}", f"{plain:.1%}", f"{width:.2f}"))
    print(table(("cells", "luck that teachers share", "moderated", "own variance", "width"), lines))


if __name__ == "__main__":
    run(main)
