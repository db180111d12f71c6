"""Animals by kinds of students, and how far the animals are higher in their own students."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.compare.compare_teacher_kinds import kind_of
from eval.compare.comparison_result import Lift, Matrix
from eval.compare.intervals import LEVEL
from eval.compare.read_results import Result, mean_margins
from eval.compare.remove_shared_drift import drift_residuals, ranks_of
from eval.compare.untaught_rank import spoken

if TYPE_CHECKING:
    import numpy as np


def matrix_of_kinds(
    base: Result, students: Mapping[str, list[Result]], neutral: Mapping[str, list[Result]], measure: str
) -> Matrix | None:
    """The table of every taught animal in every kind of students, with its lifts. None for fewer than three animals.

    students: by the animal of their teacher. neutral: students of teachers of no animal.
    """
    import numpy as np

    animals, kinds = list(students), {**students, **neutral}
    if len(animals) < 3:
        return None
    values = np.array(
        [
            [kind_of(some, animal, base.questions, measure).values.mean() for animal in animals]
            for some in kinds.values()
        ]
    )
    own = own_cells(values)
    residuals = drift_residuals(values, ~own, 0)
    lifts = [lift(own_minus_others(values)), lift(residuals[own], 0)]
    if measure == "margin":
        wide = np.hstack([values, untaught_margins(base, kinds, animals)])
        own = own_cells(wide, len(animals))
        lifts += [lift(drift_residuals(wide, ~own, rank)[own], rank) for rank in ranks_of(len(kinds), 4)]
    return Matrix(animals, list(kinds), values.tolist(), residuals.tolist(), lifts)


def own_cells(values: np.ndarray, animals: int | None = None) -> np.ndarray:
    """Which cells hold an animal in its own students: bool, like `values`; the animals are the first columns."""
    import numpy as np

    own = np.zeros(values.shape, dtype=bool)
    places = np.arange(animals or values.shape[1])
    own[places, places] = True
    return own


def own_minus_others(values: np.ndarray) -> np.ndarray:
    """Of each animal, its own students' value less the mean of the other kinds'."""
    own = values[own_cells(values)]
    return own - (values.sum(axis=0) - own) / (len(values) - 1)


def untaught_margins(base: Result, kinds: Mapping[str, Sequence[Result]], taught: Sequence[str]) -> np.ndarray:
    """Margins of the untaught animals that the base model names, [kinds, animals]."""
    import numpy as np

    names = [name for name in spoken(base) if name not in taught]
    margins = [mean_margins(some) for some in kinds.values()]
    return np.array([[some[name] for name in names] for some in margins])


def lift(values: np.ndarray, rank: int | None = None) -> Lift:
    """Mean of the animals' lifts with its t interval."""
    from scipy.special import stdtr, stdtrit

    count, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p = float(2 * stdtr(count - 1, -abs(mean) / error)) if error else 1.0
    return Lift(mean, (mean - half, mean + half), p, int((values > 0).sum()), rank)
