"""The cells of an experiment's summary: which students are compared with which, and what cells say of each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compare.comparability import check_comparable
from eval.compare.intervals import Spread
from eval.compare.moderated_variance import Prior, prior_of
from eval.compare.read_results import Arms, Result, arm_spread, canonical
from experiments.experiment_yaml import Experiment
from experiments.run_paths import Run
from util.animals.word_forms import animals_of
from util.cli import UserError

Read = Callable[[Path], Result]


def loves(run: Run, animal: str) -> bool:
    """Whether the run's teacher loves the animal."""
    return animal in [canonical(one) for one in animals_of(run["animal"])]


def mean_of(result: Result, animal: str, measure: str) -> float:
    """Share (or margin, or panel share) of an animal, the mean over all questions."""
    shares = result.measured(animal, measure)
    return sum(shares) / len(shares)


def conditions_of(experiment: Experiment) -> list[list[Run]]:
    """The runs of each condition: they differ in animal and seed only."""
    conditions: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in experiment.runs:
        conditions[run.condition].append(run)
    return list(conditions.values())


@dataclass(frozen=True)
class Cell:
    """One row of the summary: the students of one teacher in a condition, and one animal that the teacher loves."""

    runs: list[Run]
    """of the condition"""
    trained: str
    animal: str

    @property
    def targets(self) -> list[Run]:
        return [run for run in self.runs if run["animal"] == self.trained]

    @property
    def controls(self) -> list[Path]:
        return list(dict.fromkeys(run.control.exact for run in self.targets))

    @property
    def teachers(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(run.exact_teacher for run in self.targets))


def cells_of(experiment: Experiment) -> list[Cell]:
    """Every condition, each teacher in it, and each animal that the teacher loves."""
    return [
        Cell(runs, trained, animal)
        for runs in conditions_of(experiment)
        for trained in dict.fromkeys(run["animal"] for run in runs)
        for animal in map(canonical, animals_of(trained))
    ]


def students_of_others(experiment: Experiment, cell: Cell, read: Read) -> dict[str, list[Result]]:
    """The students in a condition whose teachers do not love the animal, by what their teachers love."""
    others: dict[str, list[Result]] = defaultdict(list)
    for run in cell.runs:
        if not loves(run, cell.animal):
            others[run["animal"]].append(read(run.exact))
    if not others:
        raise UserError(
            f"{experiment.name} has no students of another animal than {cell.animal}; give `animal` two values"
        )
    return others


def arms_of(experiment: Experiment, cell: Cell, read: Read) -> Arms:
    """The results of each arm, checked to be comparable."""
    others = students_of_others(experiment, cell, read)
    arms = {
        "base": [read(cell.runs[0].exact_base)],
        "control": [read(path) for path in cell.controls],
        "other": [result for some in others.values() for result in some],
        "target": [read(run.exact) for run in cell.targets],
    }
    check_comparable([result for some in arms.values() for result in some])
    return arms


def has_risen(experiment: Experiment, cell: Cell, read: Read) -> bool:
    """Whether the target students are at twice the odds of their controls or more. Students that took over a preference
    scatter much more between seeds than those that did not, so the two are not averaged."""
    measure = experiment.settings["measure"]
    target, control = (
        sum(mean_of(read(path), cell.animal, measure) for path in paths) / len(paths)
        for paths in ([run.exact for run in cell.targets], cell.controls)
    )
    if measure == "margin":
        return target - control >= math.log(2)
    return target * (1 - control) >= 2 * control * (1 - target)


def priors_of(experiment: Experiment, cells: Sequence[Cell], read: Read) -> dict[str, Prior | None]:
    """By role, what all cells together say of the variance between seeds; of targets, those that have risen. None for
    fewer than ten cells."""
    measure = experiment.settings["measure"]
    found: dict[str, list[Spread]] = {"control": [], "other": [], "target": []}
    for cell in cells:
        arms = arms_of(experiment, cell, read)
        for role in found if has_risen(experiment, cell, read) else ("control", "other"):
            found[role].append(arm_spread(arms[role], cell.animal, arms["base"][0].questions, measure))
    return {role: prior_of(arms) for role, arms in found.items()}
