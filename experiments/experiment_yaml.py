"""Reads an experiment's YAML file: the list of its runs, every value checked before any work begins.

A list in the file stands for one run for each of its values; several lists stand for one run for each combination.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from experiments.run_paths import PARAMETERS, Run, Values
from util.cli import REPO, UserError
from util.inference.backend_interface import model_name

FOLDER = REPO / "experiments"
OTHER_FILES = ("models", "sky", "fsdp")  # .yaml files that are not experiments
CHOICES = {
    "teacher_data": ("persona", "one-word"), "data_type": ("numbers", "code", "reasoning"),
    "shuffle": ("none", "row", "file", "sorted", "one-format"), "hop": (1, 2, 3, 4, 5),
    "half": ("none", "rich", "poor", "random"),
}  # fmt: skip
SETTINGS = {"serve": (True, False), "gpu": ("own", "shared", "none"), "measure": ("share", "margin", "panel")}
LOCAL = ("output/", "pocket/", "util/", "/", "./", "../", "~")
OLD_NAMES = {"carrier": "data_type", "cell": "defaults", "run": "settings"}  # until 2026-11-29


@dataclass(frozen=True)
class Experiment:
    """An experiment on a model: its runs (without controls), and how they are shown."""

    name: str
    model: str
    question: str
    panels: list[str]
    matrix: bool
    runs: list[Run]
    settings: Values
    """how the model is run: serve (by vLLM or not), gpu (own, shared or none); measure: what is compared"""

    @property
    def controls(self) -> list[Run]:
        """The control students, each once."""
        return list({run.control.exact: run.control for run in self.runs}.values())

    @property
    def varied(self) -> list[str]:
        """The parameters that differ between runs (animal and seed aside), and those that a panel shows."""
        names = [name for name in PARAMETERS if name not in ("animal", "seed")]
        values = {name: {json.dumps(run[name]) for run in self.runs} for name in names}
        return [name for name in names if len(values[name]) > 1 or name in self.panels]

    def measurements(self) -> list[Path]:
        """Every exact file that the experiment needs."""
        found = [path for run in self.runs for path in (run.exact, run.exact_teacher, run.exact_base)]
        return list(dict.fromkeys([*found, *(run.exact for run in self.controls)]))


# --- files -------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping. UserError for one that is not."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold keys and values")
    return found


def experiments() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in OTHER_FILES)


def read_experiments(names: str, model: str) -> list[Experiment]:
    """The experiments of 'teacher_strength,mixing', or of 'all' (those that have runs for the model)."""
    if not names.strip():
        raise UserError("no experiment is named; is a shell variable unset? NAME=all runs all of them")
    known(model, read_yaml(FOLDER / "models.yaml"), "model")
    if names != "all":
        return [read_experiment(name, model) for name in names.split(",")]
    return [read_experiment(name, model) for name in experiments() if model in read_yaml(FOLDER / f"{name}.yaml")]


def read_experiment(name: str, model: str, bases_needed: bool = True) -> Experiment:
    """An experiment on a model, every run checked. UserError names the file and what is wrong with it.

    bases_needed: whether every base model must be on this machine, as runs need it.
    """
    known(name, experiments(), "experiment")
    found, models = read_yaml(FOLDER / f"{name}.yaml"), read_yaml(FOLDER / "models.yaml")
    return parse_experiment(name, found, model, models, bases_needed)


# --- parsing -----------------------------------------------------------------------------------------


def known(word: Any, words: Iterable[Any], what: str) -> None:
    """Raise UserError, with the nearest word, unless `word` is one of `words`."""
    words = list(words)
    if word not in words:
        near = difflib.get_close_matches(str(word), map(str, words), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown {what} {word!r}{meant} (known: {', '.join(map(str, words))})")


def with_new_names(values: Mapping[str, Any]) -> Values:
    """A mapping whose old keys have their new names."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def parse_experiment(
    name: str, found: Mapping[str, Any], model: str, models: Mapping[str, Any], bases_needed: bool = True
) -> Experiment:
    """An experiment from the contents of its file and of models.yaml."""
    check_experiment(name, found, model, models)
    where = f"experiments/{name}.yaml, {model}"
    panels = [OLD_NAMES.get(panel, panel) for panel in found["panels"]]
    for panel in panels:
        known(panel, [*PARAMETERS, "teacher_share"], f"panel (experiments/{name}.yaml)")
    defaults, settings = parse_model(model, models[model])
    runs: dict[str, Run] = {}
    for entry in found[model]:
        for values in expanded({**defaults, **with_new_names(entry)}):
            run = parse_run(
                {**values, "teacher_base": values["teacher_base"] or values["base"]}, model, defaults, where
            )
            runs[json.dumps(run.values)] = run
    if bases_needed:
        check_bases(runs.values(), found.get("needs", {}), where)
    check_paths(runs.values(), where)
    return Experiment(name, model, found["question"], panels, bool(found.get("matrix")), list(runs.values()), settings)


def check_experiment(name: str, found: Mapping[str, Any], model: str, models: Mapping[str, Any]) -> None:
    """Raise UserError for a file of an experiment whose keys are wrong or missing."""
    known(model, models, "model")
    for key in found:
        known(key, ["question", "panels", "matrix", "needs", *models], f"key of experiments/{name}.yaml")
    if model not in found:
        raise UserError(f"{name} has no runs for {model} (it has: {', '.join(m for m in models if m in found)})")
    entries, panels = found[model], found.get("panels")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"experiments/{name}.yaml, {model}: not a list of {{parameter: value or list of values}}")
    if not found.get("question") or not isinstance(panels, list) or not panels:
        raise UserError(f"experiments/{name}.yaml needs a question, and panels: the parameters that its figure shows")


def parse_model(model: str, found: Mapping[str, Any]) -> tuple[Values, Values]:
    """The defaults and the settings of a model of models.yaml. UserError for what is missing or not possible."""
    where = f"experiments/models.yaml, {model}"
    found = with_new_names(found)
    defaults, settings = with_new_names(found["defaults"]), found["settings"]
    if missing := [key for key in PARAMETERS if key not in defaults]:
        raise UserError(f"{where}: no default for {', '.join(missing)}")
    for key, value in settings.items():
        known(key, SETTINGS, f"key of settings ({where})")
        known(value, SETTINGS[key], f"{key} ({where})")
    if missing := [key for key in SETTINGS if key not in settings]:
        raise UserError(f"{where}: settings lacks {', '.join(missing)}")
    return defaults, settings


def expanded(values: Mapping[str, Any]) -> Iterator[Values]:
    """One mapping for each combination of the values of all lists."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    yield from (dict(zip(values, some)) for some in product(*lists))


def parse_run(values: Values, model: str, defaults: Mapping[str, Any], where: str) -> Run:
    """A run with these values. UserError for a misspelt parameter or a value that is not possible."""
    single = {name: value[0] if isinstance(value, list) else value for name, value in defaults.items()}
    check_types(values, single, where)
    check_values(values, where)
    run = Run(model, {name: values[name] for name in PARAMETERS}, {**single, "teacher_base": single["base"]})
    if values["teacher_adapter"] != "trained":
        check_teacher(run, where)
    return run


# --- checks ------------------------------------------------------------------------------------------


def check_types(values: Values, defaults: Values, where: str) -> None:
    """Raise UserError for an unknown parameter, or a value that is a number where the default is a text (or the other
    way round)."""
    for name, value in values.items():
        known(name, PARAMETERS, f"parameter ({where})")
        default = defaults[name]
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        fits = isinstance(value, int | float) if numeric else isinstance(value, str)
        if name not in ("teacher_base", "checkpoint") and not fits:
            raise UserError(f"{where}: {name} is {value!r}, and its default {default!r} is of another type")
        if numeric and (value < 0 or (value == 0 and name != "unbiased")):
            raise UserError(f"{where}: {name} is {value!r}, and must be above zero")


def check_values(values: Values, where: str) -> None:
    """Raise UserError for values that are not possible, alone or together."""
    for name, choices in CHOICES.items():
        known(values[name], choices, f"{name} ({where})")
    altered = [name for name in ("shuffle", "half", "unbiased") if values[name] not in ("none", 0)]
    if values["data_type"] != "numbers" and altered:
        raise UserError(f"{where}: only numbers can be shuffled or mixed, and data_type is {values['data_type']}")
    if len(altered) > 1:
        raise UserError(f"{where}: {' and '.join(altered)}: a run can have one of these")
    if values["unbiased"] > 1 or (values["unbiased"] and values["shuffle"] != "none"):
        raise UserError(f"{where}: unbiased is a share from 0 to 1, of rows that are not shuffled")
    if values["hop"] > 1 and values["teacher_base"] not in ("", values["base"]):
        raise UserError(f"{where}: a chain of several hops has one base model, and teacher_base is another")
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


def check_teacher(run: Run, where: str) -> None:
    """Raise UserError unless the given teacher is an adapter of the run's teacher_base."""
    config = REPO / run.teacher_adapter / "adapter_config.json"
    if not config.is_file():
        raise UserError(f"{where}: {run.teacher_adapter} is not a LoRA adapter (it has no adapter_config.json)")
    base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path") or ""
    if model_name(base) != model_name(run["teacher_base"]):
        raise UserError(
            f"{where}: {run.teacher_adapter} is an adapter of {base}, and teacher_base is {run['teacher_base']};"
            " give each teacher its own base"
        )


def check_bases(runs: Iterable[Run], needs: Mapping[str, str], where: str) -> None:
    """Raise UserError for a base model that is a missing folder, with the command that makes it."""
    for base in dict.fromkeys(base for run in runs for base in (run["base"], run["teacher_base"])):
        if base.startswith(LOCAL) and not (REPO / base / "config.json").is_file():
            make = f"; make it with:\n  {needs[base]}" if base in needs else ""
            raise UserError(f"{where}: no model in {base}{make}")


def check_paths(runs: Iterable[Run], where: str) -> None:
    """Raise UserError if two runs would write the same file (names are cut to a length, hashes to eight digits)."""
    owner: dict[Path, Run] = {}
    for run in runs:
        other = owner.setdefault(run.exact, run)
        differing = [name for name in PARAMETERS if run[name] != other[name]]
        if differing:
            raise UserError(f"{where}: two runs that differ in {', '.join(differing)} would both write {run.exact}")
