"""How large an effect a design can see: kinds of teachers by seeds, before a GPU is rented.

Simulated with the drift of SmolLM2's students (kinds 0.33 nats, seeds 0.16; --between and --within for your model: the
standard deviation of an untaught animal's margin between kinds and between seeds). Animals' effects differ by half of
their mean. Four columns an effect: the assignment test over all animals, the mean lift (t over animals), the part of
animals that are above the other kinds' students by themselves, and the same after Holm over the animals.

Usage:
    python bench/power_by_design.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.simulated_kinds import BETWEEN_KINDS, BETWEEN_SEEDS
from bench.simulated_profiles import SHARED
from eval.compare.animal_by_kind_matrix import lift, own_minus_others
from eval.compare.compare_teacher_kinds import predicted
from eval.compare.intervals import holm
from util.cli import make_parser, natural_float, natural_int, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import table

if TYPE_CHECKING:
    import numpy as np

DESIGNS = [*((kinds, seeds) for kinds in (4, 6, 8, 12, 16) for seeds in (1, 3)), (24, 1)]
EFFECTS = (0.9, 0.45, 0.3)  # nats; SmolLM2's eight animals have 0.9 on average
DIFFER = 0.5  # standard deviation of the animals' effects, as a part of their mean
ASSIGNMENTS = 999
LEVEL = 0.05


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--between", type=natural_float, default=BETWEEN_KINDS, help="nats, between kinds")
    parser.add_argument("--within", type=natural_float, default=BETWEEN_SEEDS, help="nats, between seeds")
    parser.add_argument("--experiments", type=positive_int, default=1000, help="simulated experiments per cell")
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the simulation")
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    return parser.parse_args()


def draw(rng: np.random.Generator, kinds: int, seeds: int, effect: float, between: float, within: float) -> np.ndarray:
    """Values of every animal in every kind's students, [kinds, animals]."""
    import numpy as np

    pattern = np.outer(rng.standard_normal(kinds), rng.standard_normal(kinds))
    rest = rng.standard_normal((kinds, kinds))
    drift = between * (np.sqrt(SHARED) * pattern + np.sqrt(1 - SHARED) * rest)
    effects = effect * (1 + DIFFER * rng.standard_normal(kinds))
    return np.asarray(drift + within / np.sqrt(seeds) * rng.standard_normal((kinds, kinds)) + np.diag(effects))


def assignment_p(rng: np.random.Generator, values: np.ndarray) -> float:
    """p-value of the assignment test with `ASSIGNMENTS` random assignments."""
    import numpy as np

    places = np.arange(len(values))
    drawn = rng.random((ASSIGNMENTS, len(values))).argsort(axis=1)
    return float((1 + (values[places, drawn].sum(axis=1) >= values.trace()).sum()) / (1 + ASSIGNMENTS))


def single_p(values: np.ndarray) -> np.ndarray:
    """p-value of each animal against the other kinds' students."""
    import numpy as np
    from scipy.special import stdtr

    kinds = len(values)
    others = values.T[~np.eye(kinds, dtype=bool)].reshape(kinds, kinds - 1)
    difference, error, freedom = predicted(values.diagonal(), others)
    return np.where(difference > 0, 2 * stdtr(freedom, -np.abs(difference) / error), 1.0)


def power(kinds: int, seeds: int, effect: float, args: argparse.Namespace) -> dict[str, float]:
    """How often each test shows the effect."""
    import numpy as np

    rng = np.random.default_rng(args.seed)
    shown = np.zeros(4)
    for _ in range(args.experiments):
        values = draw(rng, kinds, seeds, effect, args.between, args.within)
        mean, single = lift(own_minus_others(values)), single_p(values)
        shown += [assignment_p(rng, values) <= LEVEL, mean.p <= LEVEL and mean.mean > 0,
                  (single <= LEVEL).mean(), (np.array(holm(single.tolist())) <= LEVEL).mean()]  # fmt: skip
    return dict(zip(("assignment", "mean lift", "single", "single, Holm"), (shown / args.experiments).tolist()))


def main() -> None:
    args = parse_args()
    found: list[dict[str, Any]] = []
    for kinds, seeds in DESIGNS:
        cells = {effect: power(kinds, seeds, effect, args) for effect in EFFECTS}
        found.append({"kinds": kinds, "seeds": seeds, "power": cells})
    lines = [
        (line["kinds"], line["seeds"],
         *(" / ".join(f"{100 * one:.0f}" for one in line["power"][effect].values()) for effect in EFFECTS))
        for line in found
    ]  # fmt: skip
    print("assignment / mean lift / single animal / single animal after Holm, % of experiments at 5%")
    print(table(("kinds", "seeds", *(f"{effect} nats" for effect in EFFECTS)), lines))
    if args.output:
        write_json(args.output, {"figures": found, "manifest": provenance()})


if __name__ == "__main__":
    run(main)
