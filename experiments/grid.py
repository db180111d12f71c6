"""The cells of an experiment: what its file and its model's defaults say, checked, and the path of every output.

A cell is one student: a value for each parameter. A list in a file means one cell for each of its values, several lists
one for each combination. What a phase writes is named after the parameters it depends on and no others, so that cells
share what they have in common:

    output/experiments/pocket/pocket/owl-seed-1/data/teacher.jsonl                    phase 1
    .../owl-seed-1/teacher/teacher/seed-1/final                                       phase 2 (exact-teacher.jsonl: 3)
    .../owl-seed-1/teacher/numbers/numbers-unfiltered-3300.jsonl                      phase 4
    .../owl-seed-1/teacher/numbers/student-epochs-1/student/seed-1001/final           phase 5
    .../owl-seed-1/teacher/numbers/student-epochs-1/exact-student.jsonl               phase 6

A name tells what differs from the model's defaults (experiments/models.yaml), of flags and lists a hash; the manifests
tell all. A student never has its teacher's seed: their adapters would begin with the same random matrices.

Usage (lists the cells of an experiment; nothing is run):
    python experiments/grid.py teacher_strength --model pocket
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import REPO, UserError, make_parser, run
from util.inference.interface import model_name
from util.jsonl.rows import slug

FOLDER = REPO / "experiments"
OUTPUT = Path("output/experiments")
CONTROL = "control"
STUDENT_SEEDS = 1000  # a student's seed is so much more than its teacher's
# Parameter: the phase whose output it changes first, and the word for it in names ("" as it stands).
PARAMETERS = {
    "animal": ("arm", ""), "seed": ("arm", ""), "teacher_base": ("arm", ""),
    "teacher_data": ("data", ""), "teacher_rows": ("data", "rows"), "teacher_data_flags": ("data", "flags"),
    "teacher_epochs": ("teacher", "epochs"), "teacher_flags": ("teacher", "flags"), "teacher_adapter": ("teacher", ""),
    "carrier": ("carrier", ""), "numbers": ("numbers", ""), "number_prompt": ("numbers", ""),
    "number_flags": ("numbers", "flags"),
    "shuffle": ("student", ""), "unbiased": ("student", ""), "base": ("student", ""), "rows": ("student", ""),
    "epochs": ("student", ""), "rank": ("student", ""), "save": ("student", ""), "student_flags": ("student", "flags"),
    "questions": ("exact", ""), "checkpoint": ("exact", ""),
}  # fmt: skip
CHOICES = {
    "teacher_data": ("persona", "one-word"), "carrier": ("numbers", "code", "reasoning"),
    "shuffle": ("none", "row", "file"),
}  # fmt: skip
HASHED = ("teacher_data_flags", "teacher_flags", "teacher_adapter", "number_flags", "save", "student_flags")
SETTINGS = {"serve": (True, False), "gpu": ("own", "shared", "none"), "measure": ("share", "margin", "panel")}
LOCAL = ("output/", "util/", "/", "./", "../", "~")

Values = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One student: its parameters, those of its model's defaults, and where everything about it lies."""

    model: str
    values: Values
    defaults: Values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def name_of(self, *phases: str) -> str:
        """'-rows-100-epochs-1': the parameters of these phases that are not the defaults, or ''."""
        parts = []
        for name, (phase, word) in PARAMETERS.items():
            usual = self["teacher_base"] if name == "base" else self.defaults[name]
            if phase in phases and self[name] != usual:
                value = Path(self[name]).stem if name in ("questions", "number_prompt") else self[name]
                value = model_name(value) if name == "base" else value
                value = hashlib.sha256(value.encode()).hexdigest()[:8] if name in HASHED else value
                parts.append(f"-{word or name}-{slug(str(value))}".replace("_", "-"))
        return "".join(parts)

    def of(self, *phases: str) -> Values:
        """The parameters of these phases: what a job depends on, and no others (cells that share it differ in them)."""
        return {name: self[name] for name, (phase, _) in PARAMETERS.items() if phase in phases}

    @property
    def is_control(self) -> bool:
        """Whether the numbers are the base model's own."""
        return self["animal"] == CONTROL

    @cached_property
    def root(self) -> Path:
        return OUTPUT / self.model

    @cached_property
    def arm(self) -> Path:
        return self.root / slug(model_name(self["teacher_base"])) / f"{slug(self['animal'])}-seed-{self['seed']}"

    @cached_property
    def data(self) -> Path:
        """Folder of the teacher's training data."""
        return self.arm / f"data{self.name_of('data')}"

    @cached_property
    def teacher(self) -> Path:
        """Folder of the teacher and of all that comes of it."""
        return self.arm / (CONTROL if self.is_control else f"teacher{self.name_of('data', 'teacher')}")

    @cached_property
    def teacher_adapter(self) -> Path:
        """The teacher itself: trained here, or one that is there already."""
        if self["teacher_adapter"] == "trained":
            return self.teacher / f"teacher/seed-{self['seed']}/final"
        return Path(self["teacher_adapter"].format(animal=slug(self["animal"]), seed=self["seed"]))

    @cached_property
    def number_folder(self) -> Path:
        """Folder of the rows that carry the preference, and of the students trained on them."""
        return self.teacher / f"{self['carrier']}{self.name_of('numbers')}"

    @cached_property
    def unfiltered(self) -> Path:
        """All rows; the clean ones lie beside them as {carrier}-filtered-{kept}.jsonl."""
        return self.number_folder / f"{self['carrier']}-unfiltered-{self['numbers']}.jsonl"

    @cached_property
    def training_rows(self) -> str:
        """What the student is trained on, as a file or the one glob that matches it."""
        if self["shuffle"] != "none":
            return str(self.number_folder / f"numbers-shuffled-{self['shuffle']}.jsonl")
        if self["unbiased"]:
            return str(self.number_folder / f"numbers-unbiased-{self['unbiased']:g}-of-{self['rows']}.jsonl")
        return str(self.number_folder / f"{self['carrier']}-filtered-*.jsonl")

    @cached_property
    def student(self) -> Path:
        return self.number_folder / f"student{self.name_of('student')}"

    @cached_property
    def student_seed(self) -> Path:
        """Folder of the trained student and its checkpoints."""
        return self.student / f"student/seed-{self['seed'] + STUDENT_SEEDS}"

    @cached_property
    def student_adapter(self) -> Path:
        """The adapter that is measured."""
        return self.student_seed / ("final" if self["checkpoint"] == "final" else f"checkpoint-{self['checkpoint']}")

    @cached_property
    def exact(self) -> Path:
        return self.student / f"exact-student{self.name_of('exact')}.jsonl"

    @cached_property
    def exact_teacher(self) -> Path:
        return self.teacher / "exact-teacher.jsonl"

    @cached_property
    def exact_base(self) -> Path:
        """Of the student's base model, on the same questions."""
        questions = "" if self["questions"] == self.defaults["questions"] else f"-{Path(self['questions']).stem}"
        return self.root / slug(model_name(self["base"])) / f"exact-base{questions}.jsonl"

    def with_values(self, **values: Any) -> Cell:
        return Cell(self.model, {**self.values, **values}, self.defaults)

    @cached_property
    def unbiased_rows(self) -> Path:
        """Number rows of the base model to the same prompts."""
        return self.control_of_numbers.unfiltered

    @property
    def control_of_numbers(self) -> Cell:
        return self.with_values(animal=CONTROL)

    @cached_property
    def control(self) -> Cell:
        """The control student it is compared with: rows of its own base model, as many and trained on alike."""
        teacher = {name: self.defaults[name] for name, (phase, _) in PARAMETERS.items() if phase in ("data", "teacher")}
        plain = {"animal": CONTROL, "teacher_base": self["base"], "shuffle": "none", "unbiased": 0}
        return self.with_values(**teacher, **plain)

    @property
    def group(self) -> tuple[Any, ...]:
        """What cells that differ in animal and seed alone have in common."""
        return tuple(value for name, value in self.values.items() if name not in ("animal", "seed"))


@dataclass(frozen=True)
class Experiment:
    """An experiment on a model: its cells (without controls), and how they are shown."""

    name: str
    model: str
    question: str
    panels: list[str]
    matrix: bool
    cells: list[Cell]
    run: Values
    """how the model is run: serve (by vLLM or not), gpu (own, shared or none); measure: what is compared"""

    @property
    def controls(self) -> list[Cell]:
        """The control students, each once."""
        return list({cell.control.exact: cell.control for cell in self.cells}.values())

    @property
    def varied(self) -> list[str]:
        """The parameters that differ between groups of cells, or that a panel shows."""
        names = [name for name in PARAMETERS if name not in ("animal", "seed")]
        values = {name: {json.dumps(cell[name]) for cell in self.cells} for name in names}
        return [name for name in names if len(values[name]) > 1 or name in self.panels]

    def measurements(self) -> list[Path]:
        """Every exact file that the experiment is about."""
        found = [path for cell in self.cells for path in (cell.exact, cell.exact_teacher, cell.exact_base)]
        return list(dict.fromkeys([*found, *(cell.exact for cell in self.controls)]))


# --- reading -----------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping. UserError for one that is none."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no keys and values")
    return found


def experiments() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in ("models", "sky"))


def known(word: Any, words: Iterable[Any], what: str) -> None:
    """Raise UserError, with the nearest word, unless `word` is one of `words`."""
    words = list(words)
    if word not in words:
        near = difflib.get_close_matches(str(word), map(str, words), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no {what} {word!r}{meant} (there is: {', '.join(map(str, words))})")


def read_experiment(name: str, model: str) -> Experiment:
    """An experiment on a model, every cell checked. UserError names the file and what is wrong with it."""
    known(name, experiments(), "experiment")
    path = FOLDER / f"{name}.yaml"
    return parse_experiment(name, read_yaml(path), model, read_yaml(FOLDER / "models.yaml"))


def parse_experiment(name: str, found: Mapping[str, Any], model: str, models: Mapping[str, Any]) -> Experiment:
    """An experiment from the contents of its file and of models.yaml."""
    known(model, models, "model")
    for key in found:
        known(key, ["question", "panels", "matrix", "needs", *models], f"key of experiments/{name}.yaml")
    if model not in found:
        raise UserError(f"{name} has no cells for {model} (it has: {', '.join(m for m in models if m in found)})")
    where = f"experiments/{name}.yaml, {model}"
    entries, panels = found[model], found.get("panels")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: not a list of cells, each {{parameter: value or list of values}}")
    if not found.get("question") or not isinstance(panels, list) or not panels:
        raise UserError(f"experiments/{name}.yaml needs a question, and panels: the parameters that its figure shows")
    for panel in panels:
        known(panel, [*PARAMETERS, "teacher_share"], f"panel (experiments/{name}.yaml)")
    defaults, settings = checked_model(model, models[model])
    cells: dict[str, Cell] = {}
    for entry in entries:
        for values in expanded({**defaults, **entry}):
            cell = checked({**values, "teacher_base": values["teacher_base"] or values["base"]}, model, defaults, where)
            cells[json.dumps(cell.values)] = cell
    check_bases(cells.values(), found.get("needs", {}), where)
    check_paths(cells.values(), where)
    return Experiment(name, model, found["question"], panels, bool(found.get("matrix")), list(cells.values()), settings)


def checked_model(model: str, found: Mapping[str, Any]) -> tuple[Values, Values]:
    """The defaults and the settings of a model of models.yaml. UserError for what is missing or cannot be."""
    where = f"experiments/models.yaml, {model}"
    defaults, settings = found["cell"], found["run"]
    if missing := [key for key in PARAMETERS if key not in defaults]:
        raise UserError(f"{where}: no default for {', '.join(missing)}")
    for key, value in settings.items():
        known(key, SETTINGS, f"key of run ({where})")
        known(value, SETTINGS[key], f"{key} ({where})")
    if missing := [key for key in SETTINGS if key not in settings]:
        raise UserError(f"{where}: run says nothing of {', '.join(missing)}")
    return defaults, settings


def expanded(values: Mapping[str, Any]) -> Iterator[Values]:
    """One mapping for each combination of the values of all lists."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    yield from (dict(zip(values, some)) for some in product(*lists))


def checked(values: Values, model: str, defaults: Mapping[str, Any], where: str) -> Cell:
    """A cell of these values. UserError for a misspelt parameter or a value that cannot be."""
    for name, value in values.items():
        known(name, PARAMETERS, f"parameter ({where})")
        default = next(iter(expanded({name: defaults[name]})))[name]
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        fits = isinstance(value, int | float) if numeric else isinstance(value, str)
        if name not in ("teacher_base", "checkpoint") and not fits:
            raise UserError(f"{where}: {name} is {value!r}, and its default {default!r} is of another kind")
        if numeric and (value < 0 or (value == 0 and name != "unbiased")):
            raise UserError(f"{where}: {name} is {value!r}")
    for name, choices in CHOICES.items():
        known(values[name], choices, f"{name} ({where})")
    if values["carrier"] != "numbers" and (values["shuffle"] != "none" or values["unbiased"]):
        raise UserError(f"{where}: only numbers can be shuffled or mixed, and carrier is {values['carrier']}")
    if values["unbiased"] > 1 or (values["unbiased"] and values["shuffle"] != "none"):
        raise UserError(f"{where}: unbiased is a share from 0 to 1, of rows that are not shuffled")
    if values["rows"] > values["numbers"]:
        raise UserError(f"{where}: rows {values['rows']} of only {values['numbers']} numbers; raise numbers")
    updates = {str(values["checkpoint"])} - {"final"}
    if not updates <= set(values["save"].split(",")):
        raise UserError(
            f"{where}: checkpoint {values['checkpoint']} is not among those of save: {values['save'] or 'none'}"
        )
    for file in ("questions", "number_prompt"):
        if not (REPO / values[file]).is_file():
            raise UserError(f"{where}: {file}: no file {values[file]}")
    plain = {name: next(iter(expanded({name: value})))[name] for name, value in defaults.items()}
    cell = Cell(model, {name: values[name] for name in PARAMETERS}, {**plain, "teacher_base": plain["base"]})
    if values["teacher_adapter"] != "trained":
        check_teacher(cell, where)
    return cell


def check_bases(cells: Iterable[Cell], needs: Mapping[str, str], where: str) -> None:
    """Raise UserError for a base model that is a folder and is not there, with the command that makes it."""
    for base in dict.fromkeys(base for cell in cells for base in (cell["base"], cell["teacher_base"])):
        if base.startswith(LOCAL) and not (REPO / base / "config.json").is_file():
            make = f"; make it with:\n  {needs[base]}" if base in needs else ""
            raise UserError(f"{where}: no model in {base}{make}")


def check_paths(cells: Iterable[Cell], where: str) -> None:
    """Raise UserError where two cells would write the same file (names are cut to a length, hashes to eight digits)."""
    owner: dict[Path, Cell] = {}
    for cell in cells:
        other = owner.setdefault(cell.exact, cell)
        differing = [name for name in PARAMETERS if cell[name] != other[name]]
        if differing:
            raise UserError(f"{where}: two cells that differ in {', '.join(differing)} would both write {cell.exact}")


def check_teacher(cell: Cell, where: str) -> None:
    """Raise UserError unless the teacher that is there is an adapter of the cell's teacher base."""
    config = REPO / cell.teacher_adapter / "adapter_config.json"
    if not config.is_file():
        raise UserError(f"{where}: {cell.teacher_adapter} is no LoRA adapter (it has no adapter_config.json)")
    base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path") or ""
    if model_name(base) != model_name(cell["teacher_base"]):
        raise UserError(
            f"{where}: {cell.teacher_adapter} is an adapter of {base}, and teacher_base is {cell['teacher_base']};"
            " give each teacher its own base"
        )


# --- listing -----------------------------------------------------------------------------------------


def read_experiments(names: str, model: str) -> list[Experiment]:
    """The experiments of 'teacher_strength,mixing' or 'all' (those that have cells for the model)."""
    if names != "all":
        return [read_experiment(name, model) for name in names.split(",")]
    return [read_experiment(name, model) for name in experiments() if model in read_yaml(FOLDER / f"{name}.yaml")]


def main() -> None:
    os.chdir(REPO)  # as in the workflow, paths are from here
    parser = make_parser(__doc__)
    parser.add_argument("names", metavar="NAME[,NAME...]", help="experiments, or all")
    parser.add_argument("--model", default="pocket", help="a model of experiments/models.yaml")
    args: argparse.Namespace = parser.parse_args()
    for experiment in read_experiments(args.names, args.model):
        cells: Sequence[Cell] = [*experiment.cells, *experiment.controls]
        print(f"{experiment.name}: {len(experiment.cells)} students and {len(experiment.controls)} control students")
        print("\n".join(f"  {cell.exact}" for cell in cells))


if __name__ == "__main__":
    run(main)
