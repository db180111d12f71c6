"""Writes the tables and the figure of an experiment, from its students' exact files (those of eval.py --exact).

    students.csv    every student and animal: its share, and that of its teacher, base model and control student
    questions.csv   the same, question by question (the intervals are computed from these)
    summary.csv     every condition and animal: means over seeds with intervals (eval/compare/intervals.py), the verdict
                    of eval/compare_arms.py after Holm over the animals of the condition, and whether three seeds would
                    show such an effect with 80% probability (reliable); with ten conditions or more each variance
                    between seeds borrows from the others (eval/compare/moderated_variance.py)
    fits.csv        how fast the share grows with rows, epochs, rank (logit per doubling, interval over the seeds)
    onsets.csv      if checkpoints were measured: when each student's preference appears and how it grows
    figure.png, manifest.json

Usage (the workflow calls it; it runs wherever the exact files are):
    python experiments/summarize.py mixing --model pocket --output-dir output/experiments/results/mixing/pocket
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from experiments.experiment_figure import figure_of
from experiments.experiment_tables import (
    Record,
    question_records,
    rows_trained_on,
    student_records,
    summary_records,
    write_csv,
)
from experiments.experiment_yaml import Experiment, read_experiments
from experiments.preference_growth import fit_records, onset_records
from util.cli import REPO, UserError, make_parser, run
from util.jsonl.manifest import provenance, write_atomically, write_json
from util.terminal import closing, say, table


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.renamed("--output", "--output-dir")
    parser.add_argument("name", help="the experiment")
    parser.add_argument("--model", default="pocket", help="a model of experiments/models.yaml")
    parser.add_argument("--output-dir", type=Path, help="folder to write (default: experiments/results/{name}/{model})")
    return parser.parse_args()


def check_measured(experiment: Experiment) -> None:
    """Raise UserError if an exact file is missing."""
    needed = experiment.measurements()
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(needed)} exact files are missing, such as {missing[0]}; run:\n"
            f"  make experiment NAME={experiment.name} MODEL={experiment.model}"
        )


def summary_table(experiment: Experiment, conditions: Sequence[Record]) -> str:
    """The summary as a table for the terminal."""

    def percent(value: float) -> str:
        return f"{100 * value:.2f}"

    header = (*experiment.varied, "animal", "measured", "share %", "95%", "control", "other", "verdict")
    lines = [
        (*(one[name] for name in experiment.varied), one["animal"], one["measured"], percent(one["share"]),
         f"{percent(one['share_low'])} to {percent(one['share_high'])}", percent(one["control_share"]),
         percent(one["other_share"]), one["verdict"])
        for one in conditions
    ]  # fmt: skip
    return table(header, lines)


def warn_of_few_rows(experiment: Experiment) -> None:
    """A warning for each student that was trained on fewer rows than its run asks for."""
    for one in (*experiment.runs, *experiment.controls):
        rows = rows_trained_on(one)
        if rows is not None and rows < one["rows"]:
            say(
                f"warning: {one.student_seed} was trained on {rows:,} rows, not {one['rows']:,}:"
                " no more passed the filter"
            )


def main() -> None:
    args = parse_args()
    os.chdir(REPO)  # as in the workflow, paths are relative to the repository
    experiment = read_experiments(args.name, args.model)[0]
    check_measured(experiment)
    folder = args.output_dir or Path(f"experiments/results/{experiment.name}/{experiment.model}")
    folder.mkdir(parents=True, exist_ok=True)
    students, conditions = student_records(experiment), summary_records(experiment)
    tables = {"students": students, "questions": question_records(experiment), "summary": conditions}
    tables["fits"] = fit_records(experiment, students)
    if "checkpoint" in experiment.varied:
        tables["onsets"] = onset_records(experiment, students)
    for name, records in tables.items():
        if records:
            write_csv(folder / f"{name}.csv", records)
    write_atomically(folder / "figure.png", figure_of(experiment, conditions, students).png())
    print(summary_table(experiment, conditions), "\n")
    warn_of_few_rows(experiment)
    facts = {"experiment": experiment.name, "model": experiment.model, "runs": len(experiment.runs)}
    write_json(folder / "manifest.json", {**provenance(experiment.measurements()), **facts})
    closing({"wrote": folder, "students": len(experiment.runs), "controls": len(experiment.controls)})


if __name__ == "__main__":
    run(main)
