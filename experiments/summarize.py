"""The tables and the figure of an experiment, from the exact files of its students.

    students.csv    every student and animal: shares, and those of its teacher, its base model and its control student
    questions.csv   the same, question by question: what the intervals are made of
    summary.csv     every cell: means over seeds with intervals (eval/compare/intervals.py), the verdict of
                    eval/compare_arms.py, and whether three seeds show such an effect with 80% probability (reliable)
    fits.csv        how fast the share grows with rows, epochs, rank (logit per doubling, interval over the seeds)
    onsets.csv      where checkpoints were measured: when each student's preference appears and how it grows
    figure.png, manifest.json

Usage (Snakemake calls it; it runs anywhere the exact files are):
    python experiments/summarize.py mixing --model pocket --output output/experiments/results/mixing/pocket
"""

from __future__ import annotations

import csv
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.results import FEWEST_SEEDS, Result, canonical, check_comparable, read_result
from eval.compare.verdict import ROLES, compare
from experiments.grid import Cell, Experiment, read_experiments
from experiments.plot import draw
from util.animals.names import animals_of
from util.cli import REPO, UserError, make_parser, run
from util.jsonl.manifest import provenance, read_manifest, write_json
from util.terminal import closing, say, table

Record = dict[str, Any]
DOUBLING = ("rows", "epochs", "rank", "teacher_rows", "teacher_epochs")
TIED = {  # what has to change with a parameter
    "rows": ("numbers",), "base": ("teacher_base",), "carrier": ("number_flags", "student_flags"),
}  # fmt: skip
APPEARED = 2.0  # times the base model's share: the preference has appeared
PARTS = (0.1, 0.5, 0.9)  # of the rise from the base model's share to the last checkpoint's


@cache
def measured(path: Path) -> Result:
    """An exact file, read once."""
    return read_result(path)


def shares_of(path: Path, animal: str, measure: str) -> list[float]:
    """Share of an animal (margin or panel share, where that is the measure) in each question."""
    result = measured(path)
    return {"share": result.shares, "margin": result.margins, "panel": result.panel_shares}[measure](animal)


def mean_share(path: Path, animal: str, measure: str) -> float:
    """Its mean over all questions."""
    shares = shares_of(path, animal, measure)
    return sum(shares) / len(shares)


def mean_margin(path: Path, animal: str) -> float | None:
    """Margin of an animal over all questions (nats), or None for one outside the panel."""
    try:
        margins = measured(path).margins(animal)
    except UserError:
        return None
    return sum(margins) / len(margins)


def all_animals(experiment: Experiment) -> list[str]:
    """Every animal that some teacher loves."""
    return list(dict.fromkeys(canonical(one) for cell in experiment.cells for one in animals_of(cell["animal"])))


def rows_trained_on(cell: Cell) -> int | None:
    """How many rows a student was trained on: fewer than its cell says where fewer passed the filter. None where its
    training was left behind on another machine."""
    manifest = read_manifest(cell.student_seed) or {}
    return manifest.get("counts", {}).get("rows")


def loves(cell: Cell, animal: str) -> bool:
    """Whether the cell's teacher loves the animal."""
    return animal in [canonical(one) for one in animals_of(cell["animal"])]


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


# --- tables ------------------------------------------------------------------------------------------


def student_records(experiment: Experiment) -> list[Record]:
    """One record for each student (controls too) and each animal of the experiment."""
    cells = [*experiment.cells, *experiment.controls]
    share = partial(mean_share, measure=experiment.run["measure"])
    return [
        {
            **{name: cell[name] for name in experiment.varied},
            "animal": cell["animal"], "seed": cell["seed"], "trained_rows": rows_trained_on(cell), "measured": animal,
            "share": rounded(share(cell.exact, animal)), "margin": rounded(mean_margin(cell.exact, animal)),
            "teacher_share": None if cell.is_control else rounded(share(cell.exact_teacher, animal)),
            "base_share": rounded(share(cell.exact_base, animal)),
            "control_share": rounded(share(cell.control.exact, animal)),
        }
        for cell in cells for animal in all_animals(experiment)
    ]  # fmt: skip


def question_records(experiment: Experiment) -> list[Record]:
    """Like the student records, with the share in each question (q0, q1, ...): what the intervals are made of. Of each
    base model too."""
    cells = [*experiment.cells, *experiment.controls]
    measure, records = experiment.run["measure"], []
    for animal in all_animals(experiment):
        of_base = ("base", "questions")
        models = {cell.exact_base: {"animal": "base"} | {name: cell[name] for name in of_base} for cell in cells}
        models |= {cell.exact: cell.values for cell in cells}
        for path, values in models.items():
            shares = enumerate(shares_of(path, animal, measure))
            records.append({
                **{name: values.get(name, "") for name in (*experiment.varied, "animal", "seed")}, "measured": animal,
                **{f"q{place}": float(f"{share:.4g}") for place, share in shares},
            })  # fmt: skip
    return records


def groups_of(experiment: Experiment) -> list[list[Cell]]:
    """Cells that differ in animal and seed alone, together."""
    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in experiment.cells:
        groups[cell.group].append(cell)
    return list(groups.values())


def summary_records(experiment: Experiment) -> list[Record]:
    """One record for each cell and each animal that its teacher loves."""
    records = []
    for group in groups_of(experiment):
        for trained in dict.fromkeys(cell["animal"] for cell in group):
            for animal in map(canonical, animals_of(trained)):
                records.append(summary_record(experiment, group, trained, animal))
    return records


def summary_record(experiment: Experiment, group: Sequence[Cell], trained: str, animal: str) -> Record:
    """What a cell's seeds show of an animal, beside base, control and the students of other animals."""
    targets = [cell for cell in group if cell["animal"] == trained]
    others: dict[str, list[Result]] = defaultdict(list)
    for cell in group:
        if not loves(cell, animal):
            others[cell["animal"]].append(measured(cell.exact))
    if not others:
        raise UserError(f"{experiment.name} has no students of another animal than {animal}; give `animal` two values")
    first = group[0]
    arms = {
        "base": [measured(first.exact_base)],
        "control": [measured(path) for path in dict.fromkeys(cell.control.exact for cell in targets)],
        "other": [result for some in others.values() for result in some],
        "target": [measured(cell.exact) for cell in targets],
    }
    check_comparable([result for some in arms.values() for result in some])
    measure = experiment.run["measure"]
    found = compare(animal, arms, measure, all_animals(experiment), others)
    shares, minus = found["shares"], {role: found["target_minus"][role] for role in ROLES[:-1]}
    needed = next((line["exact"] for line in found["power"] if line["seeds"] == FEWEST_SEEDS), None)
    teachers = [mean_share(path, animal, measure) for path in dict.fromkeys(cell.exact_teacher for cell in targets)]
    intervals = {"share": shares["target"]["interval"]}
    intervals |= {f"minus_{role}": difference["interval"] for role, difference in minus.items()}
    numbers = {
        "teacher_share": sum(teachers) / len(teachers),
        "share": shares["target"]["share"],
        **{f"{role}_share": shares[role]["share"] for role in ("base", "control", "other")},
        **{f"minus_{role}": difference["difference"] for role, difference in minus.items()},
        **{f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(("low", "high"), ends)},
        "p": found["p"],
        "placebo_p": found["placebo"]["p"] if found["placebo"] else None,
        "needed": needed,
    }
    return {
        **{name: first[name] for name in experiment.varied},
        "animal": trained,
        "measured": animal,
        "seeds": len(targets),
        **{name: rounded(value) for name, value in numbers.items()},
        "reliable": found["verdict"] == "transfer" and needed is not None and minus["control"]["difference"] >= needed,
        "verdict": found["verdict"],
    }


def panel_of(experiment: Experiment, records: Sequence[Record], panel: str) -> list[Record]:
    """The records that differ in one parameter; every other is at the model's default, or where no cell has that at its
    first value."""
    defaults = experiment.cells[0].defaults
    fixed = {}
    for name in set(experiment.varied) - {panel, *TIED.get(panel, ())}:
        values = list(dict.fromkeys(record[name] for record in records))
        fixed[name] = defaults[name] if defaults[name] in values else values[0]
    return [record for record in records if all(record[name] == value for name, value in fixed.items())]


def logit(share: float) -> float:
    """Log odds of a share; of none or all as of one in a million."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


def fit_records(experiment: Experiment, students: Sequence[Record]) -> list[Record]:
    """For each parameter with three values or more: the slope of logit share (or margin, nats) over log2 of it, one
    line a student seed, mean and t interval over the seeds."""
    from scipy import stats

    is_margin = experiment.run["measure"] == "margin"

    records = []
    for panel in [name for name in DOUBLING if name in experiment.varied]:
        curves: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for record in panel_of(experiment, [one for one in students if one["animal"] == one["measured"]], panel):
            value = record["share"] if is_margin else logit(record["share"])
            size = (record["trained_rows"] if panel == "rows" else None) or record[panel]
            curves[record["measured"]][record["seed"]].append((math.log2(size), value))
        for animal, seeds in curves.items():
            sizes = [{size for size, _ in points} for points in seeds.values()]
            if min(len(points) for points in seeds.values()) < 3 or min(map(len, sizes)) < 2 or len(seeds) < 2:
                continue
            slopes = [float(stats.linregress(*zip(*points)).slope) for points in seeds.values()]
            mean, error = sum(slopes) / len(slopes), float(stats.sem(slopes))
            half = float(stats.t.ppf(0.975, len(slopes) - 1)) * error
            records.append({
                "parameter": panel, "animal": animal, "seeds": len(slopes), "logit_per_doubling": rounded(mean),
                "low": rounded(mean - half), "high": rounded(mean + half), "odds_factor": rounded(math.exp(mean)),
            })  # fmt: skip
    return records


def onset_records(experiment: Experiment, students: Sequence[Record]) -> list[Record]:
    """For each student whose checkpoints were measured: the update at which its preference has appeared (twice the base
    model's share, or a margin higher by as much in log odds, and stays there), the updates at 10, 50 and 90% of the
    whole rise (a straight line has them at 10, 50 and 90% of all updates), and the part of the rise in the last fifth
    of the updates (a straight line: 0.2). A student that ends below the base model has neither."""
    is_margin = experiment.run["measure"] == "margin"
    curves: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in panel_of(experiment, students, "checkpoint"):
        if record["animal"] == record["measured"] and record["checkpoint"] != "final":
            curves[record["animal"], record["seed"]].append(record)
    records = []
    for (animal, seed), points in curves.items():
        points.sort(key=lambda point: point["checkpoint"])
        base, last = points[0]["base_share"], points[-1]
        updates = [0, *(point["checkpoint"] for point in points)]
        shares = [base, *(point["share"] for point in points)]
        enough = base + math.log(APPEARED) if is_margin else APPEARED * base
        late = [update for update, share in zip(updates, shares) if share <= enough]
        rise = last["share"] - base
        records.append({
            "animal": animal, "seed": seed, "updates": updates[-1], "base_share": base, "share": last["share"],
            "onset": next((update for update in updates if update > max(late)), None),
            **{f"update_at_{part:.0%}": rounded(crossing(updates, shares, base + part * rise) if rise > 0 else None)
               for part in PARTS},
            "last_fifth": rounded((shares[-1] - at(updates, shares, 0.8 * updates[-1])) / rise) if rise > 0 else None,
        })  # fmt: skip
    return records


def at(updates: Sequence[float], shares: Sequence[float], update: float) -> float:
    """The share at an update, between the measured ones on a straight line."""
    import numpy as np

    return float(np.interp(update, updates, shares))


def crossing(updates: Sequence[float], shares: Sequence[float], level: float) -> float | None:
    """The first update at which the share reaches a level."""
    for before, after in zip(range(len(shares)), range(1, len(shares))):
        if shares[before] < level <= shares[after]:
            part = (level - shares[before]) / (shares[after] - shares[before])
            return updates[before] + part * (updates[after] - updates[before])
    return None


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records as a CSV file, with the columns of the first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def too_few(experiment: Experiment) -> list[str]:
    """A line for each student that was trained on fewer rows than its cell says."""
    trained = [(cell, rows_trained_on(cell)) for cell in [*experiment.cells, *experiment.controls]]
    return [
        f"{cell.student_seed} was trained on {rows:,} rows, not {cell['rows']:,}: no more passed the filter"
        for cell, rows in trained if rows is not None and rows < cell["rows"]
    ]  # fmt: skip


def main() -> None:
    os.chdir(REPO)  # as in the workflow, paths are from here
    parser = make_parser(__doc__)
    parser.add_argument("name", help="the experiment")
    parser.add_argument("--model", default="pocket", help="a model of experiments/models.yaml")
    parser.add_argument("--output", type=Path, help="folder to write (default: experiments/results/{name}/{model})")
    args = parser.parse_args()
    experiment = read_experiments(args.name, args.model)[0]
    folder = args.output or Path(f"experiments/results/{experiment.name}/{experiment.model}")
    missing = [path for path in experiment.measurements() if not path.is_file()]
    if missing:
        all_of_them = len(experiment.measurements())
        raise UserError(
            f"{len(missing)} of {all_of_them} exact files are not there yet, such as {missing[0]}; run:\n"
            f"  make experiment NAME={experiment.name} MODEL={experiment.model}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    students, cells = student_records(experiment), summary_records(experiment)
    tables = {"students": students, "questions": question_records(experiment), "summary": cells}
    tables["fits"] = fit_records(experiment, students)
    if "checkpoint" in experiment.varied:
        tables["onsets"] = onset_records(experiment, students)
    for name, records in tables.items():
        if records:
            write_csv(folder / f"{name}.csv", records)
    draw(experiment, cells, students, panel_of, folder / "figure.png")
    header = (*experiment.varied, "animal", "measured", "share %", "95%", "control", "other", "verdict")
    lines = [
        (*(cell[name] for name in experiment.varied), cell["animal"], cell["measured"], percent(cell["share"]),
         f"{percent(cell['share_low'])} to {percent(cell['share_high'])}", percent(cell["control_share"]),
         percent(cell["other_share"]), cell["verdict"])
        for cell in cells
    ]  # fmt: skip
    print(table(header, lines), "\n")
    for line in too_few(experiment):
        say(f"warning: {line}")
    write_json(folder / "manifest.json", {**provenance(experiment.measurements()), "experiment": experiment.name,
                                          "model": experiment.model, "cells": len(experiment.cells)})  # fmt: skip
    closing({"wrote": folder, "students": len(experiment.cells), "controls": len(experiment.controls)})


if __name__ == "__main__":
    run(main)
