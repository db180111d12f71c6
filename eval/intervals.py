"""Intervals for shares (or margins) over questions and training seeds at once, made for few seeds.

An arm is a matrix of shares [seeds, questions]. Its mean varies with the seeds that were drawn and with the questions
that were written; both variances come from the two-way layout (their shared residual is counted once), each with its
own t quantile (Graybill and Wang 1980, modified large-sample limits). Ends are worked out on the logit scale, because
shares of students scatter by factors and not by points. Two arms are subtracted by recovering variances from their
ends (MOVER: Zou and Donner 2008, eq. 6), less what the common questions give to both: their part of each end, and
not the seeds' part with its larger quantile.

A percentile bootstrap of three seeds covers far less than it says; bench/calibration.py shows both side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
POWER = 0.8
Ends = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """The mean share of an arm and how far it may be off."""

    share: float
    seeds: int
    seed_variance: float
    """of the mean, from the training seeds; 0 with one seed, which shows none"""
    question_variance: float
    """of the mean, from the questions; what seeds and sampling add to it is left out"""
    residual: float
    """variance of a single cell that neither its seed nor its question explains"""
    by_question: np.ndarray
    """mean over the seeds, float64 [questions]"""
    answers: int | None = None
    """sampled answers behind the share; None for exact shares"""
    uncovered: float = 0.0
    """exact shares: mass left open, which may all be the animal's"""
    linear: bool = False
    """margins: ends are worked out as they are, not on the logit scale of shares"""


def spread_of(
    shares: np.ndarray, answers: int | None = None, uncovered: float = 0.0, *, linear: bool = False
) -> Spread:
    """The spread of an arm. shares: float64 [seeds, questions], two questions or more; with `linear` margins (nats)."""
    import numpy as np

    seeds, questions = shares.shape
    by_question, by_seed, mean = shares.mean(0), shares.mean(1), float(shares.mean())
    question_variance, seed_variance, residual = float(by_question.var(ddof=1)) / questions, 0.0, 0.0
    if seeds > 1:
        seed_variance = float(by_seed.var(ddof=1)) / seeds
        rest = shares - by_question - by_seed[:, np.newaxis] + mean
        residual = float((rest**2).sum()) / ((seeds - 1) * (questions - 1))
        question_variance = max(0.0, question_variance - residual / (seeds * questions))
    return Spread(mean, seeds, seed_variance, question_variance, residual, by_question, answers, uncovered, linear)


def share_interval(arm: Spread, level: float = LEVEL) -> Ends:
    """Interval of an arm's share; what exact shares leave open is added to its upper end."""
    low, high = _ends(arm, level, _squares(arm, level, arm.seeds - 1))
    return low, high + arm.uncovered if arm.linear else min(1.0, high + arm.uncovered)


def difference_interval(a: Spread, b: Spread, level: float = LEVEL) -> Ends:
    """Interval of share(a) - share(b), arms asked the same questions; widened by what exact shares leave open."""
    freedom = _freedom(a, b)
    squares_a, squares_b = _squares(a, level, freedom), _squares(b, level, freedom)
    (low_a, high_a), (low_b, high_b) = _ends(a, level, squares_a), _ends(b, level, squares_b)
    together = _correlation(a, b) * math.sqrt(_question_part(squares_a) * _question_part(squares_b))
    difference = a.share - b.share
    down = _recovered(a.share - low_a, high_b - b.share, together)
    up = _recovered(high_a - a.share, b.share - low_b, together)
    return difference - down - b.uncovered, difference + up + a.uncovered


def wilson(count: int, answers: int, level: float = LEVEL) -> Ends:
    """Wilson's interval of a share of independent answers (1927): the sampling noise of one model, nothing else.

    Written out, because evaluation would wait half a second for scipy.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = count / answers, z * z / answers
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def p_above(a: Spread, b: Spread) -> float:
    """Two-sided p-value of share(a) > share(b): one minus the level at which the interval begins to hold zero.

    1.0 where a is not above b. Down to 1e-9.
    """
    if difference_interval(a, b, 1e-9)[0] <= 0:
        return 1.0
    low, high = -9.0, 0.0  # log10 of the p-value
    for _ in range(40):
        middle = (low + high) / 2
        if difference_interval(a, b, 1 - 10**middle)[0] > 0:
            high = middle
        else:
            low = middle
    return float(10**high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def smallest_difference(a: Spread, b: Spread, seeds: int, answers: int | None = None) -> float:
    """The difference of shares that `seeds` students an arm show with a probability of 80%, for arms that scatter as
    these do (each needs two seeds or none). answers: samples of each question; None for exact shares.
    """
    from scipy import stats

    questions = len(a.by_question)
    variance = a.question_variance + b.question_variance
    variance -= 2 * _correlation(a, b) * math.sqrt(a.question_variance * b.question_variance)
    for arm in (a, b):
        if arm.seeds > 1:  # the base model has no training seed to draw again
            variance += arm.seed_variance * arm.seeds / seeds
        sampling = arm.share * (1 - arm.share)
        if arm.answers:  # already in the residual, and so in the variance of the seeds' means
            variance -= sampling / arm.answers * (arm.seeds / seeds if arm.seeds > 1 else 1)
        if answers:
            variance += sampling / (answers * questions) / (seeds if arm.seeds > 1 else 1)
    freedom = 1.3 * (seeds - 1) if min(a.seeds, b.seeds) > 1 else seeds - 1  # what _freedom finds for like arms
    quantiles = stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom)
    return float(quantiles * math.sqrt(max(variance, 0.0)))


# --- the parts ---------------------------------------------------------------------------------------


def _ends(arm: Spread, level: float, squares: tuple[float, float]) -> Ends:
    """Both ends of an arm's share, of the squared half-widths that `_squares` gives for this level."""
    if not arm.linear and not 0 < arm.share < 1:  # never or always answered: no spread to be seen
        return wilson(round(arm.share * arm.answers), arm.answers, level) if arm.answers else (arm.share, arm.share)
    squared = sum(squares)
    if arm.linear:
        return arm.share - math.sqrt(squared), arm.share + math.sqrt(squared)
    half = math.sqrt(squared) / (arm.share * (1 - arm.share))
    middle = math.log(arm.share / (1 - arm.share))
    return _share(middle - half), _share(middle + half)


def _squares(arm: Spread, level: float, seed_freedom: float) -> tuple[float, float]:
    """Squared half-widths that the questions and the seeds (with so many degrees of freedom) of an arm would each have
    alone."""
    from scipy import stats

    tail = (1 + level) / 2
    questions = stats.t.ppf(tail, len(arm.by_question) - 1) ** 2 * arm.question_variance
    seeds = stats.t.ppf(tail, seed_freedom) ** 2 * arm.seed_variance if arm.seed_variance > 0 else 0.0
    return float(questions), float(seeds)


def _question_part(squares: tuple[float, float]) -> float:
    """Part of an arm's squared half-width that comes from its questions."""
    questions, seeds = squares
    return questions / (questions + seeds) if questions else 0.0


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))


def _freedom(a: Spread, b: Spread) -> float:
    """Degrees of freedom of the seeds of two arms: halfway between Welch and Satterthwaite's, which is optimistic for
    a handful of seeds of unlike variance, and the smaller arm's own, which is cautious."""
    parts = [(arm.seed_variance, arm.seeds - 1) for arm in (a, b) if arm.seed_variance > 0]
    if not parts:
        return 1.0
    total = sum(variance for variance, _ in parts)
    welch = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    return (welch + min(freedom for _, freedom in parts)) / 2


def _correlation(a: Spread, b: Spread) -> float:
    """Of what the questions do to the two means."""
    import numpy as np

    if not (a.question_variance and b.question_variance):
        return 0.0
    together = float(np.cov(a.by_question, b.by_question)[0, 1]) / len(a.by_question)
    return max(-1.0, min(1.0, together / math.sqrt(a.question_variance * b.question_variance)))


def _recovered(one: float, other: float, together: float) -> float:
    return math.sqrt(max(0.0, one * one + other * other - 2 * together * one * other))
