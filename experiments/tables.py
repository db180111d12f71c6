"""The tables of an experiment, computed from the exact files of its students: by student, by question, by condition.

A record is one row of a table. Its share is a panel share or a margin if that is the experiment's measure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from eval.compare.comparability import check_comparable
from eval.compare.read_results import FEWEST_SEEDS, ROLES, Result, canonical, read_result
from eval.compare.verdict import CLAIMS, compare
from experiments.experiment_yaml import Experiment
from experiments.run_paths import Run
from util.animals.names import animals_of
from util.cli import UserError
from util.jsonl.manifest import Manifest

Record = dict[str, Any]
CHANGES_TOO = {  # parameters that must change together with one
    "rows": ("numbers",), "base": ("teacher_base",), "data_type": ("number_flags", "student_flags"),
}  # fmt: skip


# --- what was measured -------------------------------------------------------------------------------


@cache
def measured(path: Path) -> Result:
    """An exact file, read once."""
    return read_result(path)


def shares_of(path: Path, animal: str, measure: str) -> list[float]:
    """Share (or margin, or panel share) of an animal in each question."""
    return measured(path).measured(animal, measure)


def mean_share(path: Path, animal: str, measure: str) -> float:
    """Its mean over all questions."""
    shares = shares_of(path, animal, measure)
    return sum(shares) / len(shares)


def mean_margin(path: Path, animal: str) -> float | None:
    """Margin of an animal (nats), the mean over all questions, or None for an animal outside the panel."""
    try:
        margins = measured(path).margins(animal)
    except UserError:
        return None
    return sum(margins) / len(margins)


def all_animals(experiment: Experiment) -> list[str]:
    """Every animal that some teacher loves."""
    return list(dict.fromkeys(canonical(one) for run in experiment.runs for one in animals_of(run["animal"])))


def loves(run: Run, animal: str) -> bool:
    """Whether the run's teacher loves the animal."""
    return animal in [canonical(one) for one in animals_of(run["animal"])]


def rows_trained_on(run: Run) -> int | None:
    """How many rows a student was trained on. None if its training folder stayed on another machine."""
    manifest = Manifest.read(run.student_seed) or Manifest()
    return manifest.counts.get("rows")


def rounded(value: float | None) -> float | None:
    """A number to six digits."""
    return None if value is None else float(f"{value:.6g}")


# --- the tables --------------------------------------------------------------------------------------


def student_records(experiment: Experiment) -> list[Record]:
    """One record for each student (controls too) and each animal of the experiment."""
    runs = [*experiment.runs, *experiment.controls]
    share = partial(mean_share, measure=experiment.settings["measure"])
    return [
        {
            **{name: run[name] for name in experiment.varied},
            "animal": run["animal"], "seed": run["seed"], "trained_rows": rows_trained_on(run), "measured": animal,
            "share": rounded(share(run.exact, animal)), "margin": rounded(mean_margin(run.exact, animal)),
            "teacher_share": None if run.is_control else rounded(share(run.exact_teacher, animal)),
            "base_share": rounded(share(run.exact_base, animal)),
            "control_share": rounded(share(run.control.exact, animal)),
        }
        for run in runs for animal in all_animals(experiment)
    ]  # fmt: skip


def question_records(experiment: Experiment) -> list[Record]:
    """Like the student records, with the share in each question (q0, q1, ...). Base models have records too."""
    runs = [*experiment.runs, *experiment.controls]
    measure, records = experiment.settings["measure"], []
    for animal in all_animals(experiment):
        of_base = ("base", "questions")
        models = {run.exact_base: {"animal": "base"} | {name: run[name] for name in of_base} for run in runs}
        models |= {run.exact: run.values for run in runs}
        for path, values in models.items():
            shares = enumerate(shares_of(path, animal, measure))
            records.append({
                **{name: values.get(name, "") for name in (*experiment.varied, "animal", "seed")}, "measured": animal,
                **{f"q{place}": float(f"{share:.4g}") for place, share in shares},
            })  # fmt: skip
    return records


def conditions_of(experiment: Experiment) -> list[list[Run]]:
    """The runs of each condition: they differ in animal and seed only."""
    conditions: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in experiment.runs:
        conditions[run.condition].append(run)
    return list(conditions.values())


def summary_records(experiment: Experiment) -> list[Record]:
    """One record for each condition, each teacher in it, and each animal that the teacher loves."""
    records = []
    for runs in conditions_of(experiment):
        for trained in dict.fromkeys(run["animal"] for run in runs):
            for animal in map(canonical, animals_of(trained)):
                records.append(summary_record(experiment, runs, trained, animal))
    return records


def students_of_others(experiment: Experiment, runs: Sequence[Run], animal: str) -> dict[str, list[Result]]:
    """The students in a condition whose teachers do not love the animal, by what their teachers love."""
    others: dict[str, list[Result]] = defaultdict(list)
    for run in runs:
        if not loves(run, animal):
            others[run["animal"]].append(measured(run.exact))
    if not others:
        raise UserError(f"{experiment.name} has no students of another animal than {animal}; give `animal` two values")
    return others


def summary_record(experiment: Experiment, runs: Sequence[Run], trained: str, animal: str) -> Record:
    """What the seeds of a condition show for an animal, compared with base, control and students of other animals."""
    targets, others = [run for run in runs if run["animal"] == trained], students_of_others(experiment, runs, animal)
    arms = {
        "base": [measured(runs[0].exact_base)],
        "control": [measured(path) for path in dict.fromkeys(run.control.exact for run in targets)],
        "other": [result for some in others.values() for result in some],
        "target": [measured(run.exact) for run in targets],
    }
    check_comparable([result for some in arms.values() for result in some])
    measure = experiment.settings["measure"]
    found = compare(animal, arms, measure, all_animals(experiment), others)
    shares, minus = found.shares, {role: found.target_minus[role] for role in ROLES[:-1]}
    needed = next((line.exact for line in found.power if line.seeds == FEWEST_SEEDS), None)
    teachers = [mean_share(path, animal, measure) for path in dict.fromkeys(run.exact_teacher for run in targets)]
    intervals = {"share": shares["target"].interval}
    intervals |= {f"minus_{role}": difference.interval for role, difference in minus.items()}
    numbers = {
        "teacher_share": sum(teachers) / len(teachers),
        "share": shares["target"].share,
        **{f"{role}_share": shares[role].share for role in ("base", "control", "other")},
        **{f"minus_{role}": difference.difference for role, difference in minus.items()},
        **{f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(("low", "high"), ends)},
        "p": found.p,
        "untaught_rank_p": found.untaught_rank.p if found.untaught_rank else None,
        "needed": needed,
    }
    return {
        **{name: runs[0][name] for name in experiment.varied},
        "animal": trained,
        "measured": animal,
        "seeds": len(targets),
        **{name: rounded(value) for name, value in numbers.items()},
        "reliable": found.verdict in CLAIMS and needed is not None and minus["control"].difference >= needed,
        "verdict": found.verdict,
    }


def panel_of(experiment: Experiment, records: Sequence[Record], panel: str) -> list[Record]:
    """The records that differ in one parameter only. Every other parameter has the model's default, or its first value
    if no record has the default."""
    defaults = experiment.runs[0].defaults
    fixed = {}
    for name in set(experiment.varied) - {panel, *CHANGES_TOO.get(panel, ())}:
        values = list(dict.fromkeys(record[name] for record in records))
        fixed[name] = defaults[name] if defaults[name] in values else values[0]
    return [record for record in records if all(record[name] == value for name, value in fixed.items())]
