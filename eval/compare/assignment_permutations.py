"""The assignment test: a permutation test of whether animals rise most in the students of their own teachers."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

from eval.compare.comparison_result import AssignmentSums, AssignmentTest
from eval.compare.read_results import Result, mean_margins
from util.terminal import say

if TYPE_CHECKING:
    import numpy as np

MOST_TRIED = 8  # up to so many rows all assignments are tried (40,320), beyond so many are drawn
DRAWN = 200_000
TIE = 1e-9


def assignment(students: dict[str, list[Result]]) -> AssignmentTest | None:
    """Test whether the animals tend to rise in their own students.

    The statistic is the sum over animals of the margin in their own students. It is compared with the same sum under
    every assignment of animals to students, so p cannot be below one over the number of assignments (six for three
    animals). The test is exact if, without transfer, every assignment is equally likely; this needs the same number of
    students of each animal. It is about all animals together, not about a single one. None for fewer than three animals
    and without log-probabilities.
    """
    import numpy as np

    animals, margins = list(students), [mean_margins(results) for results in students.values()]
    if len(animals) < 3 or not all(name in some for some in margins for name in animals):
        return None
    matrix = np.array([[some[name] for name in animals] for some in margins])
    sums = assignment_sums(matrix)
    as_well = int((sums >= sums[0] - TIE).sum())
    others = sums[sums < sums[0] - TIE] if as_well == 1 else sums[1:]
    return AssignmentTest(
        animals=animals,
        margins=matrix.tolist(),
        sum=AssignmentSums(float(sums[0]), float(others.max()), float(sums.mean()), float(sums.std())),
        assignments=len(sums),
        as_well=as_well,
        p=as_well / len(sums),
        own_highest=int((matrix.argmax(axis=0) == np.arange(len(animals))).sum()),
    )


def assignment_sums(matrix: np.ndarray) -> np.ndarray:
    """The sum of one cell in every row and column of a square matrix: for the diagonal first, then for every other
    assignment of columns to rows. For more than `MOST_TRIED` rows `DRAWN` random assignments are drawn instead."""
    import numpy as np

    return matrix[np.arange(len(matrix)), orders_of(len(matrix))].sum(axis=1)


@cache
def orders_of(size: int) -> np.ndarray:
    """The assignments that are tried, int [assignments, size]; the first is the true one."""
    import numpy as np

    if size <= MOST_TRIED:
        return np.array(list(permutations(range(size))))
    drawn = np.random.default_rng(0).random((DRAWN, size)).argsort(axis=1)
    return np.vstack([np.arange(size), drawn])


def is_exact(size: int) -> bool:
    """Whether all assignments of so many rows are tried."""
    return size <= MOST_TRIED


def warn_of_assignment(students: dict[str, list[Result]]) -> None:
    """Print what makes the tests over all kinds less reliable."""
    seeds = {animal: len(some) for animal, some in students.items()}
    if len(seeds) > 2 and len(set(seeds.values())) > 1:
        counted = ", ".join(f"{animal} {count}" for animal, count in seeds.items())
        say(f"warning: the assignment test needs the same number of students of each animal; there are {counted}")
