"""Variances between seeds that borrow from the other cells of an experiment (empirical Bayes; Smyth 2004, limma).

Three seeds show their own variance badly. Where an experiment has many cells, the variances of all of them say how
large such a variance usually is. Each cell's own is drawn towards that, and counts as one with more degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval.compare.intervals import Spread

# Cells whose students have the same teachers show less than their number, and a prior that is trusted more than this
# makes intervals too narrow (simulated in bench/moderated_coverage.py).
MOST_PRIOR_FREEDOM = 6.0
FEWEST_CELLS = 10
CLOSE = 1e-8


@dataclass(frozen=True)
class Prior:
    """What the variances of many cells say about one."""

    variance: float
    """between seeds, in squared log odds (margins: nats)"""
    freedom: float


def stretch_of(arm: Spread) -> float:
    """Points of share for one log odds at the arm's share; 1 for margins."""
    return 1.0 if arm.linear else arm.share * (1 - arm.share)


def has_scatter(arm: Spread) -> bool:
    """Whether the arm's seeds show a variance."""
    return arm.seeds > 1 and arm.seed_variance > 0 and stretch_of(arm) > 0


def prior_of(arms: Sequence[Spread]) -> Prior | None:
    """The prior that the arms of all cells give, by the moments of their log variances. None for fewer than
    `FEWEST_CELLS` arms that show a variance."""
    import numpy as np
    from scipy.special import digamma, polygamma

    arms = [arm for arm in arms if has_scatter(arm)]
    if len(arms) < FEWEST_CELLS:
        return None
    variances = np.array([arm.seed_variance * arm.seeds / stretch_of(arm) ** 2 for arm in arms])
    halves = np.array([(arm.seeds - 1) / 2 for arm in arms])
    logs = np.log(variances) - digamma(halves) + np.log(halves)
    excess = float(logs.var(ddof=1) - polygamma(1, halves).mean())
    if excess <= 0:  # cells do not differ in their variance
        return Prior(math.exp(logs.mean()), MOST_PRIOR_FREEDOM)
    freedom = 2 * inverse_trigamma(excess)
    variance = math.exp(logs.mean() + digamma(freedom / 2) - math.log(freedom / 2))
    return Prior(variance, min(MOST_PRIOR_FREEDOM, freedom))


def inverse_trigamma(value: float) -> float:
    """The y whose trigamma function is `value`, by Newton's method (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    y = 0.5 + 1 / value
    for _ in range(100):
        trigamma = polygamma(1, y)
        step = trigamma * (1 - trigamma / value) / polygamma(2, y)
        y += step
        if abs(step) < CLOSE * y:
            break
    return float(y)


def moderated(arm: Spread, prior: Prior | None) -> Spread:
    """The arm with its own variance between seeds and the prior's, weighted by their degrees of freedom."""
    if prior is None or not has_scatter(arm):
        return arm
    own, stretch = arm.seeds - 1, stretch_of(arm) ** 2
    variance = (prior.freedom * prior.variance * stretch / arm.seeds + own * arm.seed_variance) / (prior.freedom + own)
    return replace(arm, seed_variance=variance, freedom=prior.freedom + own)
