"""The assignment test: do the animals go with their own students, of all ways to assign animals to students?"""

from __future__ import annotations

from itertools import permutations

from eval.compare.comparison import AssignmentSums, AssignmentTest
from eval.compare.results import Result, mean_margins
from util.terminal import say

MOST_ASSIGNED = 8  # animals whose assignments (40,320) are all tried


def assignment(students: dict[str, list[Result]]) -> AssignmentTest | None:
    """Whether the animals tend to rise in their own students.

    The sum over animals of the margin in their own students, against the same sum under every assignment of animals to
    students: a permutation test, whose p is at least one over the number of assignments (six for three animals). Exact
    if numbers that carry nothing make every naming of the arms equally likely, which wants as many students of each; it
    speaks of all animals together and of no single one. None for fewer than three animals or more than
    `MOST_ASSIGNED`, and without log-probabilities.
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
    """Say why there is no assignment test, or what weakens it."""
    seeds = {animal: len(some) for animal, some in students.items()}
    if len(seeds) > MOST_ASSIGNED:
        say(f"no assignment test: {len(seeds)} animals, and at most {MOST_ASSIGNED} are tried in every order")
    elif len(seeds) > 2 and len(set(seeds.values())) > 1:
        counted = ", ".join(f"{animal} {count}" for animal, count in seeds.items())
        say(f"warning: the assignment test wants as many students of each animal; there are {counted}")
