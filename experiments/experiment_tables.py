"""The tables of an experiment, computed from the exact files of its students: by student, by question, by condition.

A record is one row of a table. Its share is a panel share or a margin if that is the experiment's measure.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from eval.compare.comparison_result import ArmComparison
from eval.compare.intervals import holm
from eval.compare.moderated_variance import Prior
from eval.compare.read_results import FEWEST_SEEDS, ROLES, Result, canonical, read_result
from eval.compare.verdict import CLAIMS, adjusted_verdict, claimed_p, compare
from experiments.experiment_yaml import Experiment
from experiments.run_paths import Run
from experiments.summary_comparisons import (
    Cell,
    Read,
    arms_of,
    cells_of,
    has_risen,
    mean_of,
    priors_of,
    students_of_others,
)
from util.animals.word_forms import animals_of
from util.cli import UserError
from util.jsonl.manifest import Manifest

Record = dict[str, Any]

# --- what was measured -------------------------------------------------------------------------------


@cache
def measured(path: Path) -> Result:
    """An exact file, read once."""
    return read_result(path)


def shares_of(path: Path, animal: str, measure: str) -> list[float]:
    """Share (or margin, or panel share) of an animal in each question."""
    return measured(path).measured(animal, measure)


def mean_share(path: Path, animal: str, measure: str) -> float:
    """The same in an exact file."""
    return mean_of(measured(path), animal, measure)


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
                "uncovered": rounded(measured(path).uncovered),
                **{f"q{place}": float(f"{share:.4g}") for place, share in shares},
            })  # fmt: skip
    return records


def summary_records(experiment: Experiment, read: Read = measured) -> list[Record]:
    """One record for each cell. Verdicts are after Holm over the animals of a condition."""
    cells = cells_of(experiment)
    priors = priors_of(experiment, cells, read)
    found = [compared(experiment, cell, priors, read) for cell in cells]
    everywhere = holm([claimed_p(one) for one in found])
    in_condition = dict(zip(map(id, found), everywhere))
    for condition in {id(cell.runs): cell.runs for cell in cells}.values():
        ours = [one for cell, one in zip(cells, found) if cell.runs is condition]
        in_condition |= dict(zip(map(id, ours), holm([claimed_p(one) for one in ours])))
    teachers = Counter(cell.teachers for cell in cells)
    return [
        summary_record(
            experiment,
            cell,
            adjusted_verdict(replace(one, p_holm=in_condition[id(one)]), in_condition[id(one)]),
            {
                "p_holm_experiment": p,
                "same_teachers": teachers[cell.teachers] - 1,
                "moderated": bool(priors["target"]) and has_risen(experiment, cell, read),
            },
            read,
        )
        for cell, one, p in zip(cells, found, everywhere)
    ]


def compared(experiment: Experiment, cell: Cell, priors: Mapping[str, Prior | None], read: Read) -> ArmComparison:
    """What the seeds of a cell show, compared with base, control and students of other animals."""
    own = priors if has_risen(experiment, cell, read) else {**priors, "target": None}
    return compare(
        cell.animal,
        arms_of(experiment, cell, read),
        experiment.settings["measure"],
        all_animals(experiment),
        students_of_others(experiment, cell, read),
        priors=own,
    )


def summary_record(experiment: Experiment, cell: Cell, found: ArmComparison, facts: Record, read: Read) -> Record:
    """The record of a cell. facts: p over the experiment (Holm), how many other cells have the same teachers, whether
    variances are moderated."""
    measure, targets = experiment.settings["measure"], cell.targets
    shares, minus = found.shares, {role: found.target_minus[role] for role in ROLES[:-1]}
    by_kinds = bool(found.power and found.power[0].kinds)  # what more seeds would show is then not asked
    needed = next((line.exact for line in found.power if line.seeds == FEWEST_SEEDS), None)
    teachers = [mean_of(read(path), cell.animal, measure) for path in cell.teachers]
    intervals = {"share": shares["target"].interval}
    intervals |= {f"minus_{role}": difference.interval for role, difference in minus.items()}
    numbers = {
        "teacher_share": sum(teachers) / len(teachers),
        "share": shares["target"].share,
        **{f"{role}_share": shares[role].share for role in ("base", "control", "other")},
        **{f"minus_{role}": difference.difference for role, difference in minus.items()},
        **{f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(("low", "high"), ends)},
        "p": found.p,
        "p_holm": found.p_holm,
        "p_holm_experiment": facts["p_holm_experiment"],
        "untaught_rank_p": found.untaught_rank.p if found.untaught_rank else None,
        "needed": needed,
    }
    return {
        **{name: cell.runs[0][name] for name in experiment.varied},
        "animal": cell.trained,
        "measured": cell.animal,
        "seeds": len(targets),
        **{name: rounded(value) for name, value in numbers.items()},
        "same_teachers": facts["same_teachers"],
        "variance": "moderated" if facts["moderated"] else "own",
        "reliable": None
        if by_kinds
        else found.verdict in CLAIMS and needed is not None and minus["control"].difference >= needed,
        "verdict": found.verdict,
    }


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records as a CSV file, with the columns of the first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def panel_of(experiment: Experiment, records: Sequence[Record], panel: str) -> list[Record]:
    """The records that differ in one parameter only, and in those that always change with it. Every other parameter
    has the model's default, or its first value if no record has the default."""
    defaults = experiment.runs[0].defaults
    fixed = {}
    for name in set(experiment.varied) - {panel}:
        if always_changes_with(records, panel, name):
            continue
        values = list(dict.fromkeys(record[name] for record in records))
        fixed[name] = defaults[name] if defaults[name] in values else values[0]
    return [record for record in records if all(record[name] == value for name, value in fixed.items())]


def always_changes_with(records: Sequence[Record], panel: str, name: str) -> bool:
    """Whether a value of `panel` says the value of `name`."""
    pairs = {(record[panel], record[name]) for record in records}
    return len(pairs) == len({record[panel] for record in records})


def short_names(values: Sequence[Any]) -> dict[Any, str]:
    """Each value as a text, without the words that all of them have; "plain" if nothing is left."""
    texts = {value: str(value).split() for value in values}
    common = set.intersection(*map(set, texts.values())) if len(texts) > 1 else set()
    return {value: " ".join(word for word in words if word not in common) or "plain" for value, words in texts.items()}
