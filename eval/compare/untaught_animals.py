"""Tests that use all animals: rank among untaught animals, and assignment of animals to students."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

from eval.compare.results import (
    Arms,
    Result,
)
from util.terminal import say

if TYPE_CHECKING:
    pass


SPOKEN = 0.001  # part of the base model's one-word answers that an animal must have to be compared with


MOST_ASSIGNED = 8  # animals whose assignments (40,320) are all tried


def spoken(base: Result) -> list[str]:
    """The animals that make up `SPOKEN` or more of the base model's one-word answers; [] for sampled answers."""
    import numpy as np

    names = [name for name in base.logs[0] if all(name in logs for logs in base.logs)]
    if not names:
        return []
    masses = np.exp([[logs[name] for name in names] for logs in base.logs]).sum(axis=0)
    return [name for name, mass in zip(names, masses) if mass >= SPOKEN * masses.sum()]


def mean_margins(results: Sequence[Result]) -> dict[str, float]:
    """Margin of every animal in one arm (nats), a mean over students and questions; {} for sampled answers."""
    import numpy as np

    logs = [of_question for result in results for of_question in result.logs]
    names = [name for name in logs[0] if all(name in of_question for of_question in logs)]
    if len(names) < 2:
        return {}
    means = np.array([[of_question[name] for name in names] for of_question in logs]).mean(axis=0)
    return dict(zip(names, ((len(names) * means - means.sum()) / (len(names) - 1)).tolist()))


def placebo(animal: str, arms: Arms, taught: Collection[str]) -> dict[str, Any] | None:
    """How far the animal stands out among those that no teacher was trained on.

    shift: its margin in the target less the other-animal students (nats), beside those of the untaught animals that the
    base model names; words it hardly knows move by more, and mean nothing. p: the part of these animals, itself
    counted, that rose as far: a rank among names, with one over their number as its least. None without
    log-probabilities, and for an animal that the base model hardly names.
    """
    target, other = mean_margins(arms["target"]), mean_margins(arms["other"])
    shifts = {name: target[name] - other[name] for name in spoken(arms["base"][0]) if name in target and name in other}
    untaught = [name for name in shifts if name not in taught]
    if animal not in shifts or not untaught:
        return None
    further = sorted((name for name in untaught if shifts[name] >= shifts[animal]), key=lambda name: -shifts[name])
    p = (1 + len(further)) / (1 + len(untaught))
    return {"shift": shifts[animal], "animals": len(untaught), "further": len(further), "furthest": further[:5], "p": p}


def assignment(students: dict[str, list[Result]]) -> dict[str, Any] | None:
    """Whether the animals tend to rise in their own students.

    The sum over animals of the margin in their own students, against the same sum under every assignment of animals to
    students: a permutation test, whose p is at least one over the number of assignments (six for three animals). Exact
    if numbers that carry nothing make every naming of the arms equally likely, which wants as many students of each; it
    speaks of all animals together and of no single one.
    "own_highest" counts the animals that stand highest in their own students. None for fewer than three animals or more
    than `MOST_ASSIGNED`, and without log-probabilities.
    """
    import numpy as np

    animals, margins = list(students), [mean_margins(results) for results in students.values()]
    if not 3 <= len(animals) <= MOST_ASSIGNED or not all(name in some for some in margins for name in animals):
        return None
    matrix = np.array([[some[name] for name in animals] for some in margins])
    sums = np.array(
        [sum(matrix[place, other] for place, other in enumerate(p)) for p in permutations(range(len(animals)))]
    )
    true, as_well = sums[0], int((sums >= sums[0] - 1e-9).sum())
    return {
        "animals": animals,
        "margins": matrix.tolist(),
        "sum": {
            "true": float(true),
            "best_other": float(sums[1:].max()),
            "mean": float(sums.mean()),
            "sd": float(sums.std()),
        },
        "assignments": len(sums),
        "as_well": as_well,
        "p": as_well / len(sums),
        "own_highest": int((matrix.argmax(axis=0) == np.arange(len(animals))).sum()),
    }


def warn_of_assignment(students: dict[str, list[Result]]) -> None:
    """Say why there is no assignment test, or what weakens it."""
    seeds = {animal: len(some) for animal, some in students.items()}
    if len(seeds) > MOST_ASSIGNED:
        say(f"no assignment test: {len(seeds)} animals, and at most {MOST_ASSIGNED} are tried in every order")
    elif len(seeds) > 2 and len(set(seeds.values())) > 1:
        counted = ", ".join(f"{animal} {count}" for animal, count in seeds.items())
        say(f"warning: the assignment test wants as many students of each animal; there are {counted}")
