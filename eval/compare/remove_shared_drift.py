"""Patterns that all kinds of students share: general drift, which is taken out to see what is left of a kind's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROUNDS = 500
CLOSE = 1e-9
MOST_REMOVED = 3


def ranks_of(kinds: int, fixed: int) -> range:
    """How many patterns can be removed: 1 to 3, and so few that something is left of `kinds` rows after `fixed`."""
    return range(1, min(MOST_REMOVED, kinds - fixed) + 1)


def drift_residuals(values: np.ndarray, known: np.ndarray, rank: int) -> np.ndarray:
    """What is left of every cell after effects of row and column and `rank` patterns (products of a row and a column
    score), which are fitted to the known cells alone.

    values, known: [kinds, animals]. The fit replaces the unknown cells by what it expects of them until that no longer
    changes.
    """
    import numpy as np

    filled = np.where(known, values, values[known].mean())
    for _ in range(ROUNDS):
        additive = filled.mean(0) + filled.mean(1, keepdims=True) - filled.mean()
        fitted = additive
        if rank:
            left, sizes, right = np.linalg.svd(filled - additive, full_matrices=False)
            fitted = additive + (left[:, :rank] * sizes[:rank]) @ right[:rank]
        step = np.abs(np.where(known, 0.0, fitted - filled)).max()
        filled = np.where(known, values, fitted)
        if step < CLOSE:
            break
    return values - fitted


def without_patterns(values: np.ndarray, rank: int) -> np.ndarray:
    """Values centred over both sides, without their `rank` largest patterns."""
    import numpy as np

    centred = doubly_centred(values)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    return centred - (left[:, :rank] * sizes[:rank]) @ right[:rank]


def doubly_centred(values: np.ndarray) -> np.ndarray:
    """Values less the means of row and column."""
    return values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
