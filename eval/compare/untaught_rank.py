"""How special the rise of an animal is among animals that no teacher was trained on: a rank, and not a placebo.

A teacher moves untaught animals too, and its students follow (eval/compare/teacher_profile.py). So an untaught animal
that rose as far is not evidence against transfer, and a high rank only describes what was seen.
"""

from __future__ import annotations

from collections.abc import Collection

from eval.compare.comparison_result import UntaughtRank
from eval.compare.read_results import Arms, Result, mean_margins

SPOKEN = 0.001  # least share of the base model's one-word answers that an animal needs to be ranked
NAMED = 5  # how many of the animals that rose as much are named


def untaught_rank(animal: str, arms: Arms, taught: Collection[str]) -> UntaughtRank | None:
    """Rank the animal's rise among animals that no teacher was trained on.

    The rise is the margin in the target students less that in the other-animal students (nats). Only animals that the
    base model names are ranked: rare words move more, and their moves mean nothing. p is the fraction of these animals
    (the target included) that rose at least as much, so it cannot be below one over their number. None without
    log-probabilities, and if the base model hardly names the animal.
    """
    target, other = mean_margins(arms["target"]), mean_margins(arms["other"])
    shifts = {name: target[name] - other[name] for name in spoken(arms["base"][0]) if name in target and name in other}
    untaught = [name for name in shifts if name not in taught]
    if animal not in shifts or not untaught:
        return None
    further = sorted((name for name in untaught if shifts[name] >= shifts[animal]), key=lambda name: -shifts[name])
    p = (1 + len(further)) / (1 + len(untaught))
    return UntaughtRank(shifts[animal], len(untaught), len(further), further[:NAMED], p)


def spoken(base: Result) -> list[str]:
    """The animals with at least `SPOKEN` of the base model's one-word answers; [] for sampled answers."""
    import numpy as np

    names = [name for name in base.logs[0] if all(name in logs for logs in base.logs)]
    if not names:
        return []
    masses = np.exp([[logs[name] for name in names] for logs in base.logs]).sum(axis=0)
    return [name for name, mass in zip(names, masses) if mass >= SPOKEN * masses.sum()]
