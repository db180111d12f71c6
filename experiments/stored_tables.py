"""Reads the tables of an experiment: records of a CSV file, and the students' results from questions.csv.

With these results every figure of summary.csv can be computed again where the exact files themselves are gone.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.compare.read_results import Result
from experiments.experiment_tables import Record
from experiments.experiment_yaml import Experiment, read_experiment, with_new_names
from experiments.summary_comparisons import Read
from util.cli import UserError

OLD_FOLDERS = {"util/pocket/model": "pocket/model"}  # until 2026-11-29
Key = tuple[str, ...]


def experiment_of(folder: Path) -> Experiment:
    """The experiment whose tables a folder .../EXPERIMENT/MODEL holds. UserError if it holds none."""
    if not (folder / "students.csv").is_file():
        raise UserError(f"{folder} has no students.csv; pass folders written by experiments/summarize.py")
    folder = folder.resolve()
    return read_experiment(folder.parent.name, folder.name, bases_needed=False)


def read_table(path: Path) -> list[Record]:
    """The records of a CSV file; numbers as numbers, old names of columns and folders as new ones."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; pass folders written by experiments/summarize.py")
    with path.open(encoding="utf-8", newline="") as file:
        return [with_new_names({name: value_of(text) for name, text in row.items()}) for row in csv.DictReader(file)]


def value_of(text: str) -> Any:
    """The number that a text writes, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return OLD_FOLDERS.get(text, text)


def reader_of(experiment: Experiment, folder: Path) -> Read:
    """A reader of exact files that takes their shares from the tables in `folder`.

    Teachers have one mean share there and not one for each question. The results' paths are below `folder`, where no
    file is: under output/ another run of the experiment may have files, whose manifests say nothing about the tables.
    """
    names = [*experiment.varied, "animal", "seed"]

    def key(values: Mapping[str, Any]) -> Key:
        return tuple(str(values.get(name, "")) for name in names)

    by_question, of_teachers = grouped(read_table(folder / "questions.csv"), key), {}
    for student in read_table(folder / "students.csv"):
        of_teachers[key(student), student["measured"]] = student["teacher_share"]
    found: dict[Path, Result] = {}
    for run in [*experiment.runs, *experiment.controls]:
        base = {"animal": "base", **{name: run[name] for name in ("base", "questions")}}
        for path, records in ((run.exact, by_question[key(run.values)]), (run.exact_base, by_question[key(base)])):
            found[path] = result_of(folder / path, records)
    for run in experiment.runs:  # after the students: in a chain a student is the next one's teacher
        measured = [record["measured"] for record in by_question[key(run.values)]]
        shares = {animal: of_teachers[key(run.values), animal] for animal in measured}
        found.setdefault(run.exact_teacher, plain_result(folder / run.exact_teacher, [shares], 0.0))
    return found.__getitem__


def grouped(records: list[Record], key: Any) -> dict[Key, list[Record]]:
    """The records of each student: one for each animal that was measured."""
    found: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        found[key(record)].append(record)
    return found


def result_of(path: Path, records: list[Record]) -> Result:
    """The result of a student from its records. UserError if there are none."""
    if not records:
        raise UserError(f"questions.csv has no row for {path}; make the tables again with experiments/summarize.py")
    first = records[0]
    questions = [name for name in first if name[0] == "q" and name[1:].isdigit() and first[name] != ""]
    shares = [{record["measured"]: record[name] for record in records} for name in questions]
    return plain_result(path, shares, float(first["uncovered"]))


def plain_result(path: Path, shares: list[dict[str, float]], uncovered: float) -> Result:
    """A result with these shares of each question and nothing else."""
    return Result(
        path=path,
        questions=tuple(f"q{place}" for place in range(len(shares))),
        sets=(),
        animals=tuple(shares),
        logs=tuple({} for _ in shares),
        uncovered=uncovered,
        answers=None,
        non_answers={},
    )
