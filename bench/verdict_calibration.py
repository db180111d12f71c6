"""Check the intervals, the verdict and the tests of compare_arms.py on simulated experiments with a known truth.

Three tables. First two kinds of teachers, with seeds and questions as units: shares scatter on the logit scale over 50
questions, over training seeds, over the questions of an arm and over each cell, with the standard deviations of the
pocket model's students (experiments/demo.sh, seeds 7 and 42). Then the kind as the unit: kinds drift by 0.33 nats and
seeds by 0.16, as untaught animals do in SmolLM2's students, and the design is varied
(bench/simulated_kinds.py). Last the tests over all kinds, where students and teachers drift along one shared
pattern (bench/simulated_profiles.py).

Usage:
    python bench/verdict_calibration.py --experiments 1000 --output output/calibration.json
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.simulated_kinds import BETWEEN_KINDS, Design, rates
from bench.simulated_profiles import Table, lift_rates, profile_rates
from eval.compare.intervals import Spread, difference_interval, spread_of
from eval.compare.read_results import ROLES
from eval.compare.verdict import ABOVE_THE_OTHER_KIND, verdict
from util.cli import make_parser, natural_int, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import table

if TYPE_CHECKING:
    import numpy as np

BASE_SHARE = 0.0075
QUESTIONS = 50
QUESTION_SPREAD = 0.4  # all spreads are standard deviations in log odds
# mean shift, between seeds, between the questions of an arm, between cells
BASE, CONTROL, OTHER = (0.0, 0.0, 0.0, 0.0), (0.0, 0.07, 0.02, 0.05), (0.0, 0.4, 0.2, 0.35)
SHIFTED = (1.5, 0.4, 0.2, 0.35)
DRIFT = "general shift, kinds drift"
TRUTHS = {  # of the other arm and the target
    "no effect": (OTHER, OTHER), "general shift": (SHIFTED, SHIFTED), DRIFT: (SHIFTED, SHIFTED),
    "small": (OTHER, (0.7, 0.4, 0.2, 0.35)), "large": (OTHER, (2.7, 0.5, 0.4, 0.6)),
}  # fmt: skip
SEEDS = (3, 5)
ANSWERS = (None, 100)  # exact shares, or this many samples of each question

DESIGNS = [(kinds, seeds) for kinds in (4, 8, 16) for seeds in (1, 2, 5)]
EFFECTS = (0.45, 0.9, 1.5)  # nats; SmolLM2's eight animals have 0.9 on average
NORMAL = "normal"
VARIED: dict[str, dict[str, Any]] = {
    NORMAL: {}, "skewed": {"scatter": "skewed"}, "heavy tails": {"scatter": "heavy tails"},
    "one student 1.5 nats off": {"outlier": True}, "kinds in two groups": {"clusters": 2},
    "target drifts twice as much": {"target_drift": 2.0}, "half of the others half as much": {"calm_others": True},
    "sampled, 0.75%": {"share": 0.0075},
    "sampled, 0.03%": {"share": 0.0003},
}  # fmt: skip
TABLES: dict[str, dict[str, Any]] = {
    "drift alone": {}, "drift alike in teachers (r 0.5)": {"alike": 0.5}, "the same (r 1)": {"alike": 1.0},
    "followed by 0.064, own +0.9": {"followed": 0.064, "own": 0.9},
    "half of both": {"followed": 0.032, "own": 0.45},
}  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--experiments", type=positive_int, default=1000, help="simulated experiments per line of the table"
    )
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the simulation")
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    return parser.parse_args()


def draw_arm(
    rng: np.random.Generator, scatter: tuple[float, ...], by_question: np.ndarray, seeds: int, answers: int | None
) -> np.ndarray:
    """Observed shares of one arm, float64 [seeds, questions]."""
    shift, between_seeds, between_questions, between_cells = scatter
    logits = math.log(BASE_SHARE / (1 - BASE_SHARE)) + shift + by_question
    logits = logits + rng.normal(0, between_questions, QUESTIONS) + rng.normal(0, between_seeds, (seeds, 1))
    shares = 1 / (1 + math.e ** -(logits + rng.normal(0, between_cells, (seeds, QUESTIONS))))
    return shares if answers is None else rng.binomial(answers, shares) / answers


def true_share(scatter: tuple[float, ...]) -> float:
    """Expected share over all seeds and questions, by quadrature over the normal scatter."""
    import numpy as np

    shift, *spreads = scatter
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    total = math.sqrt(QUESTION_SPREAD**2 + sum(spread**2 for spread in spreads))
    shares = 1 / (1 + np.exp(-(math.log(BASE_SHARE / (1 - BASE_SHARE)) + shift + total * nodes)))
    return float(weights @ shares / weights.sum())


def drifted(rng: np.random.Generator, scatter: tuple[float, ...], truth: str) -> tuple[float, ...]:
    """The scatter of one arm of teachers' students, whose kind has its own drift if the truth says so."""
    shift, *rest = scatter
    return (shift + rng.normal(0, BETWEEN_KINDS), *rest) if truth == DRIFT else scatter


def simulate(truth: str, seeds: int, answers: int | None, experiments: int, seed: int) -> dict[str, Any]:
    """Fraction of experiments whose intervals include the truth, and fraction with *above the other kind*."""
    import numpy as np

    rng = np.random.default_rng(seed)
    scatters = dict(zip(ROLES, (BASE, CONTROL, *TRUTHS[truth])))
    truths = {role: true_share(scatters["target"]) - true_share(scatters[role]) for role in ROLES[:-1]}
    held, called = dict.fromkeys(truths, 0), 0
    for _ in range(experiments):
        by_question = rng.normal(0, QUESTION_SPREAD, QUESTIONS)
        arms = scatters | {role: drifted(rng, scatters[role], truth) for role in ("other", "target")}
        counts = {role: 1 if role == "base" else seeds for role in ROLES}
        shares = {role: draw_arm(rng, arms[role], by_question, counts[role], answers) for role in ROLES}
        spreads = {role: spread_with_answers(shares[role], answers) for role in ROLES}
        found = {role: difference_interval(spreads["target"], spreads[role]) for role in truths}
        called += verdict(2, seeds, {role: low > 0 for role, (low, _) in found.items()}) == ABOVE_THE_OTHER_KIND
        for role, difference in truths.items():
            low, high = found[role]
            held[role] += low <= difference <= high
    return {
        "truth": truth, "seeds": seeds, "answers": answers, "experiments": experiments,
        "called": called / experiments,
        "coverage": {role: count / experiments for role, count in held.items()},
    }  # fmt: skip


def spread_with_answers(shares: np.ndarray, answers: int | None) -> Spread:
    """The spread of an arm with exact shares, or with `answers` samples of each question."""
    return spread_of(shares, None if answers is None else answers * shares.size)


def of_two_kinds(experiments: int, seed: int) -> list[dict[str, Any]]:
    """Print the table of two kinds, with seeds and questions as units."""
    found = [
        simulate(truth, seeds, answers, experiments, seed) for truth in TRUTHS for seeds in SEEDS for answers in ANSWERS
    ]
    lines = [
        (line["truth"], line["seeds"], line["answers"] or "exact", f"{line['called']:.1%}",
         *(f"{line['coverage'][role]:.1%}" for role in ROLES[:-1]))
        for line in found
    ]  # fmt: skip
    print(
        f"two kinds, {experiments:,} experiments a line; how often the 95% interval of target minus an arm holds the"
        " truth"
    )
    print(table(("truth", "seeds", "answers", ABOVE_THE_OTHER_KIND, *ROLES[:-1]), lines))
    return found


def of_kinds(experiments: int, seed: int) -> list[dict[str, Any]]:
    """Print the table of four kinds or more, with the kind as the unit."""
    found: list[dict[str, Any]] = []
    for name, options in VARIED.items():
        for kinds, seeds in DESIGNS:
            size, coverage = rates(Design(kinds, seeds, **options), experiments, seed)
            power = [rates(Design(kinds, seeds, effect=one, **options), experiments, seed)[0] for one in EFFECTS]
            found.append({"design": name, "kinds": kinds, "seeds": seeds, "size": size, "power": power,
                          "coverage": coverage})  # fmt: skip
    lines = [
        (line["design"], line["kinds"], line["seeds"], f"{line['size']:.1%}", *(f"{one:.0%}" for one in line["power"]),
         f"{line['coverage']:.1%}")
        for line in found
    ]  # fmt: skip
    print(
        f"\nthe kind as the unit, {experiments:,} experiments a line; above the other kinds' students at 5%, unadjusted"
    )
    print(table(("drift", "kinds", "seeds", "no effect", *(f"{one} nats" for one in EFFECTS), "coverage"), lines))
    return found


def of_all_kinds(experiments: int, seed: int) -> list[dict[str, Any]]:
    """Print the table of the tests over all kinds."""
    found: list[dict[str, Any]] = []
    for kinds in (5, 8):
        for name, options in TABLES.items():
            one = Table(kinds, **options)
            profiles, lifts = profile_rates(one, experiments, seed), lift_rates(one, experiments, seed)
            found.append(
                {"truth": name, "kinds": kinds, "profile": profiles, "lift": {str(k): v for k, v in lifts.items()}}
            )
    lines = []
    for line in found:
        words = [f"{shown:.0%}, {held:.0%}" for rank, (shown, held) in line["lift"].items() if rank in ("None", "1")]
        lines.append((line["truth"], line["kinds"], *(f"{line['profile'][rank]:.1%}" for rank in (0, 1)), *words))
    print(f"\nall kinds together, {experiments:,} experiments a line; p <= 0.05 (mean lift: and above zero; coverage)")
    print(table(("truth", "kinds", "profile", "without 1 pattern", "mean lift", "without 1 pattern"), lines))
    return found


def main() -> None:
    args = parse_args()
    two = of_two_kinds(args.experiments, args.seed)
    kinds = of_kinds(20 * args.experiments, args.seed)
    together = of_all_kinds(max(1, args.experiments // 4), args.seed)
    if args.output:
        write_json(args.output, {"two_kinds": two, "kinds": kinds, "all_kinds": together, "manifest": provenance()})
    held = [share for line in two if line["truth"] != DRIFT for share in line["coverage"].values()]
    normal = [line for line in kinds if line["design"] == NORMAL]
    print(
        f"\ntwo kinds without drift: coverage {min(held):.1%} to {max(held):.1%}; kinds that drift evenly: no effect"
        f" called at most {max(line['size'] for line in normal):.1%}, coverage"
        f" {min(line['coverage'] for line in normal):.1%} to {max(line['coverage'] for line in normal):.1%}"
    )


if __name__ == "__main__":
    run(main)
