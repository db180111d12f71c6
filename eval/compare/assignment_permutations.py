"""The assignment test: a permutation test of whether animals rise most in the students of their own teachers."""

from __future__ import annotations

from itertools import permutations

from eval.compare.comparison_result import AssignmentSums, AssignmentTest
from eval.compare.read_results import Result, mean_margins
from util.terminal import say

MOST_ASSIGNED = 8  # animals; all 40,320 assignments are tried


def assignment(students: dict[str, list[Result]]) -> AssignmentTest | None:
    """Test whether the animals tend to rise in their own students.

    The statistic is the sum over animals of the margin in their own students. It is compared with the same sum under
    every assignment of animals to students, so p cannot be below one over the number of assignments (six for three
    animals). The test is exact if, without transfer, every assignment is equally likely; this needs the same number of
    students of each animal. It is about all animals together, not about a single one. None for fewer than three animals
    or more than `MOST_ASSIGNED`, and without log-probabilities.
    """
    import numpy as np

    animals, margins = list(students), [mean_margins(results) for results in students.values()]
    if not 3 <= len(animals) <= MOST_ASSIGNED or not all(name in some for some in margins for name in animals):
        return None
    matrix = np.array([[some[name] for name in animals] for some in margins])
    sums = np.array(
        [sum(matrix[place, other] for place, other in enumerate(p)) for p in permutations(range(len(animals)))]
    )  # the first is the true assignment
    as_well = int((sums >= sums[0] - 1e-9).sum())
    return AssignmentTest(
        animals=animals,
        margins=matrix.tolist(),
        sum=AssignmentSums(float(sums[0]), float(sums[1:].max()), float(sums.mean()), float(sums.std())),
        assignments=len(sums),
        as_well=as_well,
        p=as_well / len(sums),
        own_highest=int((matrix.argmax(axis=0) == np.arange(len(animals))).sum()),
    )


def warn_of_assignment(students: dict[str, list[Result]]) -> None:
    """Print why there is no assignment test, or what makes it less reliable."""
    seeds = {animal: len(some) for animal, some in students.items()}
    if len(seeds) > MOST_ASSIGNED:
        say(f"no assignment test: there are {len(seeds)} animals, and it takes at most {MOST_ASSIGNED}")
    elif len(seeds) > 2 and len(set(seeds.values())) > 1:
        counted = ", ".join(f"{animal} {count}" for animal, count in seeds.items())
        say(f"warning: the assignment test needs the same number of students of each animal; there are {counted}")
