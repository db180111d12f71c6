"""Check the intervals and the verdict of compare_arms.py on simulated experiments with a known truth.

Shares scatter on the logit scale: over 50 questions, over training seeds, over the questions of an arm and over each
cell. The standard deviations are those of the pocket model's students (experiments/demo.sh, seeds 7 and 42): a control
student stays close to the base model, a student of a teacher moves by factors, and so does its other animal. There are
three truths: no effect (the target arm scatters as the other arm does), a small one (twice the share) and a large one.
The coverage of a percentile bootstrap over questions and seeds is printed for comparison.

Usage:
    python bench/calibration.py --experiments 1000 --output output/calibration.json
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

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
TRUTHS = {"none": OTHER, "small": (0.7, 0.4, 0.2, 0.35), "large": (2.7, 0.5, 0.4, 0.6)}
SEEDS = (3, 5)
ANSWERS = (None, 100)  # exact shares, or this many samples of each question
BOOTSTRAP_DRAWS = 500


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


def bootstrap_interval(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap of the difference: questions are drawn for both arms together, seeds for each arm."""
    import numpy as np

    weights = rng.multinomial(QUESTIONS, np.full(QUESTIONS, 1 / QUESTIONS), BOOTSTRAP_DRAWS) / QUESTIONS
    means = []
    for arm in (a, b):
        by_seed = weights @ arm.T
        chosen = rng.integers(len(arm), size=by_seed.shape)
        means.append(np.take_along_axis(by_seed, chosen, axis=1).mean(1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)


def simulate(truth: str, seeds: int, answers: int | None, experiments: int, seed: int) -> dict[str, Any]:
    """Fraction of experiments whose intervals include the truth, and fraction with the verdict transfer."""
    import numpy as np

    rng = np.random.default_rng(seed)
    scatters = dict(zip(ROLES, (BASE, CONTROL, OTHER, TRUTHS[truth])))
    truths = {role: true_share(TRUTHS[truth]) - true_share(scatters[role]) for role in ROLES[:-1]}
    held, held_by_bootstrap, called = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0), 0
    for _ in range(experiments):
        by_question = rng.normal(0, QUESTION_SPREAD, QUESTIONS)
        counts = {role: 1 if role == "base" else seeds for role in ROLES}
        shares = {role: draw_arm(rng, scatters[role], by_question, counts[role], answers) for role in ROLES}
        spreads = {role: spread_with_answers(shares[role], answers) for role in ROLES}
        found = {role: difference_interval(spreads["target"], spreads[role]) for role in truths}
        called += verdict(2, seeds, {role: low > 0 for role, (low, _) in found.items()}) == ABOVE_THE_OTHER_KIND
        for role, difference in truths.items():
            low, high = found[role]
            held[role] += low <= difference <= high
            low, high = bootstrap_interval(rng, shares["target"], shares[role])
            held_by_bootstrap[role] += low <= difference <= high
    return {
        "effect": truth, "seeds": seeds, "answers": answers, "experiments": experiments,
        "transfer": called / experiments,
        "coverage": {role: count / experiments for role, count in held.items()},
        "bootstrap_coverage": {role: count / experiments for role, count in held_by_bootstrap.items()},
    }  # fmt: skip


def spread_with_answers(shares: np.ndarray, answers: int | None) -> Spread:
    """The spread of an arm with exact shares, or with `answers` samples of each question."""
    return spread_of(shares, None if answers is None else answers * shares.size)


def main() -> None:
    args = parse_args()
    found = [
        simulate(truth, seeds, answers, args.experiments, args.seed)
        for truth in TRUTHS
        for seeds in SEEDS
        for answers in ANSWERS
    ]
    if args.output:
        write_json(args.output, {"figures": found, "manifest": provenance()})
    lines = [
        (
            line["effect"], line["seeds"], line["answers"] or "exact", f"{line['transfer']:.1%}",
            *(f"{line['coverage'][role]:.1%}" for role in ROLES[:-1]),
            *(f"{line['bootstrap_coverage'][role]:.1%}" for role in ROLES[:-1]),
        )
        for line in found
    ]  # fmt: skip
    print(
        f"{args.experiments} experiments a line; how often the 95% interval of target minus an arm includes the truth"
    )
    print(table(("effect", "seeds", "answers", "transfer", "base", "control", "other",
                 "base (bootstrap)", "control (b.)", "other (b.)"), lines))  # fmt: skip
    held = [share for line in found for share in line["coverage"].values()]
    false = max(line["transfer"] for line in found if line["effect"] == "none")
    print(f"\ncoverage {min(held):.1%} to {max(held):.1%}; false transfer at most {false:.1%}")


if __name__ == "__main__":
    run(main)
