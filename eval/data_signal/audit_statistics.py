"""What stands out in a file's profile: differences from control rows, their noise, and a test over all animals.

The rows of a file are cut into groups of equal size; each group has a profile (gradient_kernel.py). The
scatter of the groups is the noise. z of an animal: mean of the file's groups less mean of the control's, divided by its
standard error. The alarm is a permutation test of the largest z: groups of file and control are exchanged at random, so
5% of the files whose rows are written like the control's raise it, however many animals there are and however they are
correlated. Without control rows the signs of whole groups are exchanged, which is right for rows that the base model
itself sampled at temperature 1: their expected gradient is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 4000
LEVEL = 0.05  # the alarm


@dataclass(frozen=True)
class Standing:
    """How far each animal stands out."""

    difference: np.ndarray
    """[animals], in the kernel's units: only their order and ratios mean something"""
    z: np.ndarray
    """[animals]"""
    p: float
    """of the largest z, over all animals"""

    @property
    def alarm(self) -> bool:
        return self.p <= LEVEL

    def rank(self, animal: int) -> int:
        """1 for the animal that stands out most."""
        return 1 + int((self.z > self.z[animal]).sum())


def standing(data: np.ndarray, control: np.ndarray | None, permutations: int = PERMUTATIONS) -> Standing:
    """data, control: profiles of groups, [groups, animals]; control None: compared with zero."""
    rng = np.random.default_rng(0)
    if control is None:
        z = data.mean(0) / standard_error(data)
        signs = rng.choice((-1.0, 1.0), (permutations, len(data)))
        drawn = (one_sample(data * sign[:, None]).max() for sign in signs)
        difference = data.mean(0)
    else:
        z, difference = two_sample(data, control), data.mean(0) - control.mean(0)
        both = np.vstack([data, control])
        orders = (rng.permutation(len(both)) for _ in range(permutations))
        drawn = (two_sample(both[order[: len(data)]], both[order[len(data) :]]).max() for order in orders)
    as_far = sum(bool(largest >= z.max()) for largest in drawn)
    return Standing(difference, z, (1 + as_far) / (1 + permutations))


def standard_error(groups: np.ndarray) -> np.ndarray:
    """Of the mean over groups, [animals]."""
    return np.asarray(np.sqrt(groups.var(0, ddof=1) / len(groups) + 1e-300))


def one_sample(groups: np.ndarray) -> np.ndarray:
    """Means in units of their standard errors, [animals]."""
    return np.asarray(groups.mean(0) / standard_error(groups))


def two_sample(data: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Differences of means in units of their standard errors (Welch), [animals]."""
    error = np.hypot(standard_error(data), standard_error(control))
    return np.asarray((data.mean(0) - control.mean(0)) / error)
