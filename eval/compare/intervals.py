"""Confidence intervals and p-values for shares (or margins) over questions and training seeds, for few seeds.

An arm is a matrix of shares [seeds, questions]. Its mean varies with the seeds that were drawn and with the questions
that were written. Both variances come from the two-way layout (the residual they share is counted once), each with its
own t quantile (Graybill and Wang 1980, modified large-sample limits). The ends are computed on the logit scale, because
the shares of students scatter by factors, not by points. The interval of a difference recovers the variances from the
ends of both arms (MOVER: Zou and Donner 2008, eq. 6). Both arms answer the same questions: the covariance that this
gives is subtracted from the questions' part of each end, and not from the seeds' part with its larger quantile.

How often the intervals hold the truth is simulated by bench/verdict_calibration.py (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
POWER = 0.8
Ends = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """The mean share of an arm and the variances of that mean."""

    share: float
    seeds: int
    seed_variance: float
    """of the mean, from the training seeds; 0 with one seed, which shows no scatter"""
    question_variance: float
    """of the mean, from the questions; without what seeds and sampling add to it"""
    residual: float
    """variance of a single cell of the matrix that neither its seed nor its question explains"""
    by_question: np.ndarray
    """mean over the seeds, float64 [questions]"""
    answers: int | None = None
    """sampled answers behind the share; None for exact shares"""
    uncovered: float = 0.0
    """exact shares: mass that was not explored, all of which could be the animal's"""
    linear: bool = False
    """margins: the ends are computed directly, not on the logit scale of shares"""
    freedom: float | None = None
    """degrees of freedom of the seed variance if it was not estimated from the arm's own seeds alone"""


def spread_of(
    shares: np.ndarray, answers: int | None = None, uncovered: float = 0.0, *, linear: bool = False
) -> Spread:
    """The spread of an arm. shares: float64 [seeds, questions], two questions or more; margins (nats) if `linear`."""
    import numpy as np

    seeds, questions = shares.shape
    by_question, by_seed, mean = shares.mean(0), shares.mean(1), float(shares.mean())
    question_variance, seed_variance, residual = float(by_question.var(ddof=1)) / questions, 0.0, 0.0
    if seeds > 1:
        seed_variance = float(by_seed.var(ddof=1)) / seeds
        if answers:  # with few answers, seeds can be equal by chance and would seem to have no scatter
            seed_variance = max(seed_variance, mean * (1 - mean) / answers)
        rest = shares - by_question - by_seed[:, np.newaxis] + mean
        residual = float((rest**2).sum()) / ((seeds - 1) * (questions - 1))
        question_variance = max(0.0, question_variance - residual / (seeds * questions))
    return Spread(mean, seeds, seed_variance, question_variance, residual, by_question, answers, uncovered, linear)


def share_interval(arm: Spread) -> Ends:
    """95% interval of an arm's share; the mass that exact shares did not explore is added to its upper end."""
    low, high = _ends(arm, LEVEL, _squares(arm, LEVEL, _own_freedom(arm)))
    return low, high + arm.uncovered if arm.linear else min(1.0, high + arm.uncovered)


def difference_interval(a: Spread, b: Spread, level: float = LEVEL) -> Ends:
    """Interval of share(a) - share(b) for arms asked the same questions; widened by the mass that was not explored."""
    freedom = _freedom(a, b)
    squares_a, squares_b = _squares(a, level, freedom), _squares(b, level, freedom)
    (low_a, high_a), (low_b, high_b) = _ends(a, level, squares_a), _ends(b, level, squares_b)
    together = _correlation(a, b) * math.sqrt(_question_part(squares_a) * _question_part(squares_b))
    difference = a.share - b.share
    down = _recovered(a.share - low_a, high_b - b.share, together)
    up = _recovered(high_a - a.share, b.share - low_b, together)
    return difference - down - b.uncovered, difference + up + a.uncovered


def wilson(count: int, answers: int, level: float = LEVEL) -> Ends:
    """Wilson's interval (1927) of a share of independent answers: the sampling noise of one model and nothing else.

    Written out here because importing scipy takes half a second.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = count / answers, z * z / answers
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def p_above(a: Spread, b: Spread) -> float:
    """Two-sided p-value of share(a) > share(b): one minus the level at which the interval begins to include zero.

    1.0 if a is not above b; never below 1e-9.
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
    """Holm's adjusted p-values (1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def smallest_target(
    target: Spread, others: Sequence[Spread], seeds: int, answers: int | None = None, level: float = LEVEL
) -> float | None:
    """The share (or margin) that the target needs for the verdict: then, with a probability of 80%, its difference to
    each other arm has a lower end above zero.

    seeds: students per arm, which scatter as those in `target` and `others` do (each of which needs two seeds or more,
    or is a base model). answers: samples of each question; None for exact shares. Returns None if no share is large
    enough, and if the target was never or always named, so that its scatter is not known.

    Each other arm is considered by itself. With several that are equally high the probability is below 80% (simulated:
    60 to 70% with seven). The scatter is only as well known as the seeds of these arms show it.
    """
    if not target.linear and not 0 < target.share < 1:
        return None
    planned, others = _planned(target, seeds, answers), [_planned(other, seeds, answers) for other in others]
    low = max(other.share for other in others)
    high = low + 100.0 if target.linear else 0.999  # nats; very close to 1 a few answers cannot distinguish shares
    if high <= low or not _shown(_about(planned, high), others, level):
        return None
    for _ in range(30):
        middle = (low + high) / 2
        if _shown(_about(planned, middle), others, level):
            high = middle
        else:
            low = middle
    return high


# --- the parts ---------------------------------------------------------------------------------------


def _ends(arm: Spread, level: float, squares: tuple[float, float]) -> Ends:
    """Both ends of an arm's share, from the squared half-widths that `_squares` gives for this level."""
    if not arm.linear and not 0 < arm.share < 1:  # never or always named: no scatter to be seen
        return wilson(round(arm.share * arm.answers), arm.answers, level) if arm.answers else (arm.share, arm.share)
    squared = sum(squares)
    if arm.linear:
        return arm.share - math.sqrt(squared), arm.share + math.sqrt(squared)
    half = math.sqrt(squared) / (arm.share * (1 - arm.share))
    middle = math.log(arm.share / (1 - arm.share))
    return share_of_log_odds(middle - half), share_of_log_odds(middle + half)


def _squares(arm: Spread, level: float, seed_freedom: float) -> tuple[float, float]:
    """Squared half-widths that the questions alone and the seeds alone (with `seed_freedom` degrees of freedom) would
    give."""
    from scipy.special import stdtrit  # the quantile of t

    tail = (1 + level) / 2
    questions = stdtrit(len(arm.by_question) - 1, tail) ** 2 * arm.question_variance
    seeds = stdtrit(seed_freedom, tail) ** 2 * arm.seed_variance if arm.seed_variance > 0 else 0.0
    return float(questions), float(seeds)


def _about(arm: Spread, share: float) -> Spread:
    """The arm with another share, around which it scatters by the same factors (margins: by the same nats)."""
    stretch = 1.0
    if not arm.linear and 0 < arm.share < 1:
        stretch = share * (1 - share) / (arm.share * (1 - arm.share))
    sampling = arm.share * (1 - arm.share) / arm.answers if arm.answers else 0.0

    def stretched(variance: float, sampling: float = 0.0) -> float:
        """The sampling noise grows with share * (1 - share), everything else with its square."""
        return max(0.0, variance - sampling) * stretch**2 + sampling * stretch

    trained = arm.seeds > 1
    # Sampling noise is part of the variance over seeds; for a base model, of that over questions.
    return replace(
        arm, share=share, by_question=share + stretch * (arm.by_question - arm.share),
        seed_variance=stretched(arm.seed_variance, sampling if trained else 0.0),
        question_variance=stretched(arm.question_variance, 0.0 if trained else sampling),
    )  # fmt: skip


def _planned(arm: Spread, seeds: int, answers: int | None) -> Spread:
    """The arm as it would be with this number of seeds and of answers to each question."""
    trained = arm.seeds > 1  # a base model has no training seed
    seeds = seeds if trained else 1
    asked = answers * len(arm.by_question) * seeds if answers else None
    if not arm.linear and not 0 < arm.share < 1:  # exact shares of 0 or 1 show no scatter
        return replace(arm, seeds=seeds, answers=asked or arm.answers)
    sampled = arm.share * (1 - arm.share)

    def planned(variance: float) -> float:
        """Variance of the mean with the noise of the planned answers instead of that of the given ones."""
        alone = max(0.0, variance - (sampled / arm.answers if arm.answers else 0.0))
        return alone * arm.seeds / seeds + (sampled / asked if asked else 0.0)

    if trained:
        freedom = None if arm.freedom is None else max(1.0, arm.freedom + seeds - arm.seeds)
        return replace(arm, seeds=seeds, answers=asked, seed_variance=planned(arm.seed_variance), freedom=freedom)
    return replace(arm, answers=asked, question_variance=planned(arm.question_variance))


def _shown(target: Spread, others: Sequence[Spread], level: float) -> bool:
    """Whether the difference to each other arm has a lower end above zero with a probability of 80%: whether this is
    still so at the difference that is reached or exceeded four times in five."""
    for other in others:
        fallen = other.share + difference_interval(target, replace(other, uncovered=0.0), 2 * POWER - 1)[0]
        if fallen <= other.share or difference_interval(_about(target, fallen), other, level)[0] <= 0:
            return False
    return True


def _question_part(squares: tuple[float, float]) -> float:
    """The fraction of an arm's squared half-width that comes from its questions."""
    questions, seeds = squares
    return questions / (questions + seeds) if questions else 0.0


def share_of_log_odds(log_odds: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, log_odds))))


def _own_freedom(arm: Spread) -> float:
    return arm.seeds - 1 if arm.freedom is None else arm.freedom


def _freedom(a: Spread, b: Spread) -> float:
    """Degrees of freedom of the seeds of two arms: halfway between Welch-Satterthwaite's, which is optimistic for a few
    seeds of unequal variance, and those of the smaller arm, which are cautious."""
    parts = [(arm.seed_variance, _own_freedom(arm)) for arm in (a, b) if arm.seed_variance > 0]
    if not parts:
        return 1.0
    if a.freedom or b.freedom:  # a pooled variance: the parts are not independent
        return min(freedom for _, freedom in parts)
    total = sum(variance for variance, _ in parts)
    welch = total**2 / sum(variance**2 / freedom for variance, freedom in parts)
    return (welch + min(freedom for _, freedom in parts)) / 2


def _correlation(a: Spread, b: Spread) -> float:
    """Correlation of the two means over the questions."""
    import numpy as np

    if not (a.question_variance and b.question_variance):
        return 0.0
    together = float(np.cov(a.by_question, b.by_question)[0, 1]) / len(a.by_question)
    return max(-1.0, min(1.0, together / math.sqrt(a.question_variance * b.question_variance)))


def _recovered(one: float, other: float, together: float) -> float:
    return math.sqrt(max(0.0, one * one + other * other - 2 * together * one * other))
