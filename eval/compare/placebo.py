"""The placebo test: the rank of the target animal's rise among animals that no teacher was trained on."""

from __future__ import annotations

from collections.abc import Collection

from eval.compare.comparison import Placebo
from eval.compare.results import Arms, Result, mean_margins

SPOKEN = 0.001  # part of the base model's one-word answers that an animal must have to be compared with
NAMED = 5  # animals that rose as far and are named


def placebo(animal: str, arms: Arms, taught: Collection[str]) -> Placebo | None:
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
    return Placebo(shifts[animal], len(untaught), len(further), further[:NAMED], p)


def spoken(base: Result) -> list[str]:
    """The animals that make up `SPOKEN` or more of the base model's one-word answers; [] for sampled answers."""
    import numpy as np

    names = [name for name in base.logs[0] if all(name in logs for logs in base.logs)]
    if not names:
        return []
    masses = np.exp([[logs[name] for name in names] for logs in base.logs]).sum(axis=0)
    return [name for name, mass in zip(names, masses) if mass >= SPOKEN * masses.sum()]
