"""Compare one kind of teacher's students with the students of the other kinds, with the kind as the unit.

All students of teachers who were taught the same thing drift together, and more seeds do not average that away. So each
kind counts once. With four kinds or more, the target kind is compared with the mean of the others by a t test whose
error is that of predicting one further kind: how far the other kinds scatter is how far a kind without transfer can
lie. Shares and panel shares are compared in log odds, margins in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eval.compare.intervals import LEVEL, POWER, Ends, Spread, share_of_log_odds, spread_of
from eval.compare.read_results import FEWEST_SEEDS, Result, arm_spread, mean_uncovered, seeds_by_questions

if TYPE_CHECKING:
    import numpy as np

FEWEST_KINDS = 4
RAREST = 1e-7  # share; exact files do not explore answers rarer than this
UNSEEN = 1e-9  # nats; kinds that scatter less never name the animal, and then no scatter is known
SAME = 0.2  # nats (log odds): differences below this are called equivalent


@dataclass(frozen=True)
class Kind:
    """The students of one kind, for one animal."""

    values: np.ndarray
    """of each seed: mean over questions, in nats or log odds; float64 [seeds]"""
    by_question: np.ndarray
    """mean over seeds, linearised about `values` where these are log odds; float64 [questions]"""
    noise: float
    """variance of the mean over seeds that comes from sampled answers alone; 0 for exact files"""
    uncovered: float
    """how much higher `values` may be on average, because exact files left mass unexplored"""


@dataclass(frozen=True)
class KindTest:
    """The target kind less the mean of the other kinds, in nats or log odds."""

    difference: float
    error: float
    """standard error of predicting one further kind"""
    freedom: float
    between: float
    """standard deviation between the other kinds"""
    kinds: int
    """with the target's"""
    open_below: float = 0.0
    """how much smaller the difference may be, because of mass that the others' exact files left unexplored"""
    open_above: float = 0.0

    def interval(self, level: float = LEVEL) -> Ends:
        """Interval of the difference."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.difference - self.open_below - half, self.difference + self.open_above + half

    @property
    def p(self) -> float:
        """Two-sided p-value of a target above the others; 1.0 if it is not above."""
        from scipy.special import stdtr

        above = self.difference - self.open_below
        if above <= 0 or self.between < UNSEEN:
            return 1.0
        return float(2 * stdtr(self.freedom, -above / self.error))


def kind_of(results: Sequence[Result], animal: str, questions: Sequence[str], measure: str) -> Kind:
    """The values of an animal in the students of one kind."""
    import numpy as np

    shares = seeds_by_questions([result.measured(animal, measure) for result in results], results, questions)
    means = shares.mean(axis=1)
    if measure == "margin":
        return Kind(means, shares.mean(axis=0), 0.0, 0.0)
    noise, uncovered = 0.0, np.zeros(len(results))
    if measure == "share":
        answers = np.array([result.answers or 0 for result in results])
        if answers.all():
            means = (means * answers + 0.5) / (answers + 1)
            noise = float((1 / (means * (1 - means) * answers)).mean() / len(results))
        else:
            uncovered = np.array([result.uncovered for result in results])
    means = np.clip(means, RAREST, 1 - RAREST)
    values = np.log(means / (1 - means))
    higher = np.clip(means + uncovered, RAREST, 1 - RAREST)
    centred = (shares - shares.mean(axis=1, keepdims=True)) / (means * (1 - means))[:, np.newaxis]
    widest = np.log(higher / (1 - higher)) - values
    return Kind(values, (centred + values[:, np.newaxis]).mean(axis=0), noise, float(widest.mean()))


def compare_kinds(target: Kind, others: Sequence[Kind]) -> KindTest:
    """Compare the target kind with three other kinds or more.

    The variance of one further kind is that between the others. If the target has fewer seeds than the others, what
    its mean scatters more is added. The difference also varies over the questions.
    """
    import numpy as np

    means = np.array([kind.values.mean() for kind in others])
    by_question = target.by_question - np.mean([kind.by_question for kind in others], axis=0)
    seed_variance, _ = pooled_seed_variance([target, *others])
    fewer = 1 / len(target.values) - np.mean([1 / len(kind.values) for kind in others])
    noise = max(target.noise, float(np.mean([kind.noise for kind in others])))
    difference, error, freedom = predicted(
        target.values.mean(),
        means,
        least=noise,
        extra=max(0.0, float(fewer)) * seed_variance,
        question_variance=by_question.var(ddof=1) / len(by_question),
        questions=len(by_question),
    )
    return KindTest(
        difference=float(difference),
        error=float(error),
        freedom=float(freedom),
        between=math.sqrt(max(noise, float(means.var(ddof=1)))),
        kinds=1 + len(others),
        open_below=float(np.mean([kind.uncovered for kind in others])),
        open_above=target.uncovered,
    )


def predicted(
    target: Any,
    others: np.ndarray,
    *,
    least: Any = 0.0,
    extra: Any = 0.0,
    question_variance: Any = 0.0,
    questions: int = 2,
) -> tuple[Any, Any, Any]:
    """(difference, standard error, degrees of freedom) of a kind less the mean of others, float64 [..., kinds].

    least: smallest variance of a kind. extra: variance that the target has beyond that of the others. The degrees of
    freedom are Satterthwaite's. Works on many experiments at once (bench/verdict_calibration.py).
    """
    import numpy as np

    kinds = others.shape[-1]
    between = np.maximum(others.var(axis=-1, ddof=1), least)
    of_kinds = between * (1 + 1 / kinds) + extra
    variance = of_kinds + question_variance
    parts = of_kinds**2 / (kinds - 1) + np.square(question_variance) / max(1, questions - 1)
    freedom = np.divide(variance**2, parts, out=np.ones_like(parts), where=parts > 0)
    return target - others.mean(axis=-1), np.sqrt(variance), freedom


def pooled_seed_variance(kinds: Sequence[Kind]) -> tuple[float, int]:
    """(variance between seeds of one kind, its degrees of freedom), pooled over kinds; (0, 0) with one seed each."""
    freedom = sum(len(kind.values) - 1 for kind in kinds)
    squares = sum(float(((kind.values - kind.values.mean()) ** 2).sum()) for kind in kinds)
    return (squares / freedom if freedom else 0.0), freedom


def borrowed_scatter(arm: Spread, arms: Sequence[Kind], between: float) -> Spread:
    """An arm with fewer than three seeds, with the scatter that the seeds of all arms show together.

    between: standard deviation between the other kinds, which holds that between seeds: used where the arms together
    show too little. Arms with three seeds or more are returned as they are.
    """
    if arm.seeds >= FEWEST_SEEDS:
        return arm
    variance, freedom = pooled_seed_variance(arms)
    if freedom < FEWEST_SEEDS:
        variance, freedom = between**2, len(arms) - 2
    stretch = 1.0 if arm.linear else arm.share * (1 - arm.share)
    return replace(arm, seed_variance=variance * stretch**2 / arm.seeds, freedom=float(max(1, freedom)))


def spread_of_kinds(
    others: Mapping[str, Sequence[Result]], animal: str, questions: Sequence[str], measure: str
) -> Spread:
    """The mean of several kinds as one arm, in which each kind counts once.

    With three other kinds or more its variance is that between kinds; two show none, and it is that of the seeds
    within them.
    """
    import numpy as np

    spreads = [arm_spread(some, animal, questions, measure) for some in others.values()]
    results = [result for some in others.values() for result in some]
    whole = spread_of(
        np.array([spread.by_question for spread in spreads]),
        sum(spread.answers or 0 for spread in spreads) or None,
        mean_uncovered(results) if measure == "share" else 0.0,
        linear=measure == "margin",
    )
    if len(spreads) >= FEWEST_KINDS - 1:
        return whole
    freedom = min((spread.seeds - 1 for spread in spreads if spread.seed_variance > 0), default=1)
    within = sum(spread.seed_variance for spread in spreads) / len(spreads) ** 2
    return replace(whole, seed_variance=within, freedom=float(freedom))


def as_shares(test: KindTest, target: float) -> tuple[float, Ends]:
    """A difference in log odds and its interval in points: from the share that the target has to what it would have
    if it were like the other kinds."""
    if not 0 < target < 1:
        target = min(max(target, RAREST), 1 - RAREST)
    own = math.log(target / (1 - target))
    size, low, high = (target - share_of_log_odds(own - gap) for gap in (test.difference, *test.interval()))
    return size, (low, high)


def detectable(between: float, kinds: int, tests: int = 1) -> float:
    """The true difference (nats or log odds) that this many kinds show with 80% probability at the level of Holm's
    first step. between: standard deviation between kinds."""
    from scipy.special import nctdtr, stdtrit

    freedom = kinds - 2
    critical = float(stdtrit(freedom, 1 - (1 - LEVEL) / 2 / tests))
    low, high = 0.0, 10 * critical + 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if 1 - nctdtr(freedom, middle, critical) > POWER else (middle, high)
    return high * between * math.sqrt(1 + 1 / (kinds - 1))
