"""Simulated tables of kinds by animals, for the tests over all kinds: profiles of teachers and students, lifts.

Students of a kind drift; a part of that drift is one pattern that all kinds share, more or less of it. Teachers have
such a pattern too. If kinds whose teacher has much of it have students who drift much, and both patterns are alike,
then students resemble their own teacher without taking over anything of its own: the case that a drift fit is for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.simulated_kinds import BETWEEN_KINDS, BETWEEN_SEEDS
from eval.compare.animal_by_kind_matrix import lift, own_cells, own_minus_others
from eval.compare.remove_shared_drift import drift_residuals, ranks_of, without_patterns
from eval.compare.teacher_profile import correlations, summed_up

if TYPE_CHECKING:
    import numpy as np

UNTAUGHT = 65
SHARED = 0.6  # of the variance of the drift: the one pattern (62% in SmolLM2's eight kinds)
TEACHERS = 2.1  # nats, between kinds; SmolLM2's students follow by 0.064 nats a nat, which makes a correlation of 0.4


@dataclass(frozen=True)
class Table:
    """What to simulate."""

    kinds: int
    seeds: int = 2
    followed: float = 0.0
    """nats that students move for a nat of their own teacher, beyond all drift"""
    own: float = 0.0
    """nats that animals are higher in their own students"""
    alike: float = 0.0
    """correlation of the shared pattern of students and teachers, over kinds and over animals"""


def shared_pattern(rng: np.random.Generator, size: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of students and of teachers on their pattern, correlated by `alike`, each [size]."""
    import numpy as np

    first = rng.standard_normal(size)
    return first, alike * first + math.sqrt(1 - alike**2) * np.asarray(rng.standard_normal(size))


def simulate(rng: np.random.Generator, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(students, teachers), each [kinds, animals]; the taught animals are the first columns."""
    import numpy as np

    animals = table.kinds + UNTAUGHT
    by_kind, by_animal = (shared_pattern(rng, size, table.alike) for size in (table.kinds, animals))
    patterns = [np.outer(kinds, names) for kinds, names in zip(by_kind, by_animal)]
    own = [rng.standard_normal((table.kinds, animals)) for _ in range(2)]
    moves, teachers = (
        math.sqrt(SHARED) * pattern + math.sqrt(1 - SHARED) * rest for pattern, rest in zip(patterns, own)
    )
    luck = BETWEEN_SEEDS / math.sqrt(table.seeds) * rng.standard_normal((table.kinds, animals))
    students = BETWEEN_KINDS * moves + luck + table.followed * TEACHERS * own[1]
    students += table.own * own_cells(students, table.kinds)
    return students, TEACHERS * teachers


def profile_rates(table: Table, experiments: int, seed: int) -> dict[int, float]:
    """How often the profile test has p <= 0.05, by the number of patterns removed (0: none)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found: dict[int, int] = dict.fromkeys((0, *ranks_of(table.kinds, 3)), 0)
    for _ in range(experiments):
        students, teachers = (some[:, table.kinds :] for some in simulate(rng, table))
        for rank in found:
            left = correlations(without_patterns(students, rank), without_patterns(teachers, rank))
            found[rank] += summed_up(left)[2] <= 0.05
    return {rank: count / experiments for rank, count in found.items()}


def lift_rates(table: Table, experiments: int, seed: int) -> dict[int | None, tuple[float, float]]:
    """By patterns removed (None: own minus others): how often the mean lift has p <= 0.05 and is above zero, and how
    often its interval holds the truth."""
    import numpy as np

    rng = np.random.default_rng(seed)
    ranks = (None, 0, *ranks_of(table.kinds, 4))
    shown, held = (dict.fromkeys(ranks, 0) for _ in range(2))
    for _ in range(experiments):
        students, _ = simulate(rng, table)
        own = own_cells(students, table.kinds)
        for rank in ranks:
            values = (
                own_minus_others(students[:, : table.kinds])
                if rank is None
                else drift_residuals(students, ~own, rank)[own]
            )
            one = lift(values, rank)
            shown[rank] += one.p <= 0.05 and one.mean > 0
            held[rank] += one.interval[0] <= table.own <= one.interval[1]
    return {rank: (shown[rank] / experiments, held[rank] / experiments) for rank in ranks}
