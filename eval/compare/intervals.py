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
        if answers:  # seeds of few answers can tie by chance, and would seem to have no spread
            seed_variance = max(seed_variance, mean * (1 - mean) / answers)
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


def smallest_target(
    target: Spread, others: Sequence[Spread], seeds: int, answers: int | None = None, level: float = LEVEL
) -> float | None:
    """The share (or margin) that the target needs so that its lower end over each other arm is above zero with a
    probability of 80%, with `seeds` students an arm that scatter as these do (each arm needs two seeds or none).
    answers: samples of each question; None for exact shares. None where no share would do, and for a target that was
    never or always named, whose scatter nobody has seen.

    Each arm is looked at by itself: over several that stand equally high it is less than 80% (simulated: 60 to 70% over
    seven). It knows the scatter as well as the seeds of these arms do.
    """
    if not target.linear and not 0 < target.share < 1:
        return None
    planned, others = _planned(target, seeds, answers), [_planned(other, seeds, answers) for other in others]
    low = max(other.share for other in others)
    high = low + 100.0 if target.linear else 0.999  # nats; next to 1 a few answers tell no share from another
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
    from scipy.special import stdtrit  # the quantile of t

    tail = (1 + level) / 2
    questions = stdtrit(len(arm.by_question) - 1, tail) ** 2 * arm.question_variance
    seeds = stdtrit(seed_freedom, tail) ** 2 * arm.seed_variance if arm.seed_variance > 0 else 0.0
    return float(questions), float(seeds)


def _about(arm: Spread, share: float) -> Spread:
    """The arm with another share, about which it scatters by like factors (margins: by like nats)."""
    stretch = 1.0
    if not arm.linear and 0 < arm.share < 1:
        stretch = share * (1 - share) / (arm.share * (1 - arm.share))
    sampling = arm.share * (1 - arm.share) / arm.answers if arm.answers else 0.0

    def stretched(variance: float, sampling: float = 0.0) -> float:
        """The noise of the answers grows with share * (1 - share), all else with its square."""
        return max(0.0, variance - sampling) * stretch**2 + sampling * stretch

    trained = arm.seeds > 1
    # What sampling adds is in the variance of the seeds' means; that of the questions has it of the base model alone.
    return replace(
        arm, share=share, by_question=share + stretch * (arm.by_question - arm.share),
        seed_variance=stretched(arm.seed_variance, sampling if trained else 0.0),
        question_variance=stretched(arm.question_variance, 0.0 if trained else sampling),
    )  # fmt: skip


def _planned(arm: Spread, seeds: int, answers: int | None) -> Spread:
    """The arm with so many seeds and so many answers to each question."""
    trained = arm.seeds > 1  # the base model has no training seed to draw again
    seeds = seeds if trained else 1
    asked = answers * len(arm.by_question) * seeds if answers else None
    if not arm.linear and not 0 < arm.share < 1:  # of exact shares nobody knows how far below all answers it lies
        return replace(arm, seeds=seeds, answers=asked or arm.answers)
    sampled = arm.share * (1 - arm.share)

    def planned(variance: float) -> float:
        """Of the mean: with the noise of these answers instead of those that were given."""
        alone = max(0.0, variance - (sampled / arm.answers if arm.answers else 0.0))
        return alone * arm.seeds / seeds + (sampled / asked if asked else 0.0)

    if trained:
        return replace(arm, seeds=seeds, answers=asked, seed_variance=planned(arm.seed_variance))
    return replace(arm, answers=asked, question_variance=planned(arm.question_variance))


def _shown(target: Spread, others: Sequence[Spread], level: float) -> bool:
    """Whether the lower end over each other arm is above zero with a probability of 80%: whether it still is about the
    share to which the difference falls one time in five."""
    for other in others:
        fallen = other.share + difference_interval(target, replace(other, uncovered=0.0), 2 * POWER - 1)[0]
        if fallen <= other.share or difference_interval(_about(target, fallen), other, level)[0] <= 0:
            return False
    return True


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
