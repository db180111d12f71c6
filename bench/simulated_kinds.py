"""Simulated experiments in which all students of one kind of teacher drift together, many at once (numpy arrays).

An animal's value (nats or log odds) in a student is a general shift, the drift of its kind, the luck of its seed, and
noise of the question for the kind and for the student. The standard deviations are those of the margins of 65 untaught
animals in SmolLM2's eight kinds of students (experiments/results/smollm2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.compare.compare_teacher_kinds import predicted

if TYPE_CHECKING:
    import numpy as np

BETWEEN_KINDS, BETWEEN_SEEDS, OF_QUESTIONS, OF_CELLS = 0.33, 0.16, 0.20, 0.15  # nats
QUESTIONS = 50
OUTLIER = 1.5  # nats; about nine standard deviations of seeds


@dataclass(frozen=True)
class Design:
    """An experiment to simulate."""

    kinds: int
    """with the target's"""
    seeds: int
    effect: float = 0.0
    """nats that the animal is higher in its own kind's students"""
    between: float = BETWEEN_KINDS
    within: float = BETWEEN_SEEDS
    scatter: str = "normal"
    """of kinds and of seeds: normal, skewed or heavy tails"""
    outlier: bool = False
    """whether one student, of any kind, is `OUTLIER` nats higher"""
    share: float | None = None
    """base share of sampled answers; None for margins"""
    answers: int = 100
    """sampled, to each question"""
    target_drift: float = 1.0
    """drift of the target kind, as a multiple of that of the others"""
    calm_others: bool = False
    """whether half of the other kinds (such as neutral ones) drift half as much"""
    clusters: int = 0
    """groups of kinds that share half of the variance of their drift; 0: none"""
    target_seeds: int | None = None
    """seeds of the target kind, if they are not `seeds`"""


@dataclass(frozen=True)
class Kinds:
    """Values of one animal in many experiments."""

    target: np.ndarray
    """[experiments]"""
    others: np.ndarray
    """[experiments, other kinds]"""
    question_variance: np.ndarray
    """of the difference, [experiments]"""
    least: np.ndarray
    """variance of a kind that sampled answers alone give, [experiments]"""
    extra: np.ndarray
    """variance of the target beyond that of the others, [experiments]"""


def standard(rng: np.random.Generator, shape: tuple[int, ...], scatter: str) -> np.ndarray:
    """Draws with mean 0 and variance 1: normal, exponential (skewed to the right), or t with 3 degrees of freedom."""
    if scatter == "skewed":
        return rng.exponential(1.0, shape) - 1.0
    if scatter == "heavy tails":
        return rng.standard_t(3, shape) / math.sqrt(3)
    return rng.standard_normal(shape)


def drift(rng: np.random.Generator, design: Design, experiments: int) -> np.ndarray:
    """Drift of every kind, [experiments, kinds]; the first is the target's."""
    import numpy as np

    own = standard(rng, (experiments, design.kinds), design.scatter)
    if design.clusters:
        groups = standard(rng, (experiments, design.clusters), design.scatter)
        own = (own + groups[:, np.arange(design.kinds) % design.clusters]) / math.sqrt(2)
    own[:, 0] *= design.target_drift
    if design.calm_others:
        own[:, 1 : 1 + (design.kinds - 1) // 2] /= 2
    return design.between * own


def simulate(rng: np.random.Generator, design: Design, experiments: int) -> Kinds:
    """The values of `experiments` experiments."""
    import numpy as np

    shape = (experiments, design.kinds)
    seeds = design.within * standard(rng, (*shape, design.seeds), design.scatter)
    if design.outlier:
        hit = rng.integers(design.kinds * design.seeds, size=experiments)
        seeds.reshape(experiments, -1)[np.arange(experiments), hit] += OUTLIER
    own_seeds = design.target_seeds or design.seeds
    of_kind = drift(rng, design, experiments) + seeds.mean(axis=2)
    if own_seeds < design.seeds:
        of_kind[:, 0] += seeds[:, 0, :own_seeds].mean(axis=1) - seeds[:, 0].mean(axis=1)
    of_kind[:, 0] += design.effect
    fewer = max(0.0, 1 / own_seeds - 1 / design.seeds) * seeds.var(axis=2, ddof=min(1, design.seeds - 1)).mean(axis=1)
    noise = math.sqrt(OF_QUESTIONS**2 + OF_CELLS**2 / design.seeds)
    if design.share is not None:
        return sampled(rng, design, of_kind)
    of_kind = of_kind + rng.normal(0, noise / math.sqrt(QUESTIONS), shape)
    # The noise of the questions is averaged; of its variance only the size of the sample matters.
    spread = noise**2 * (1 + 1 / (design.kinds - 1)) / QUESTIONS
    questions = spread * rng.chisquare(QUESTIONS - 1, experiments) / (QUESTIONS - 1)
    return Kinds(of_kind[:, 0], of_kind[:, 1:], questions, np.zeros(experiments), fewer)


def sampled(rng: np.random.Generator, design: Design, of_kind: np.ndarray) -> Kinds:
    """The same where values are log odds of sampled answers, counted and turned back as in compare_teacher_kinds.py."""
    import numpy as np

    assert design.share is not None
    base = math.log(design.share / (1 - design.share))
    answers = design.answers * QUESTIONS * design.seeds
    shares = 1 / (1 + np.exp(-(base + of_kind)))
    counted = (rng.binomial(answers, shares) + 0.5) / (answers + 1)
    noise = 1 / (counted * (1 - counted) * answers)
    values = np.log(counted / (1 - counted))
    least = np.maximum(noise[:, 0], noise[:, 1:].mean(axis=1))
    zero = np.zeros(len(values))
    return Kinds(values[:, 0], values[:, 1:], zero, least, zero)


def judged(drawn: Kinds, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """(p-value of a target above the other kinds, whether the 95% interval holds the true effect), each [experiments].

    The p-value is two-sided, and 1 where the target is below.
    """
    import numpy as np
    from scipy.special import stdtr

    difference, error, freedom = predicted(
        drawn.target,
        drawn.others,
        least=drawn.least,
        extra=drawn.extra,
        question_variance=drawn.question_variance,
        questions=QUESTIONS,
    )
    p = np.where(difference > 0, 2 * stdtr(freedom, -np.abs(difference) / error), 1.0)
    held = 2 * stdtr(freedom, -np.abs(difference - effect) / error) > 0.05
    return p, held


def rates(design: Design, experiments: int, seed: int) -> tuple[float, float]:
    """(how often the target is called above the other kinds at 5%, how often the interval holds the effect)."""
    import numpy as np

    p, held = judged(simulate(np.random.default_rng(seed), design, experiments), design.effect)
    return float((p <= 0.05).mean()), float(held.mean())
