"""Draws the figure of an experiment: shares with 95% intervals, each seed as a dot; or a matrix of base models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.experiment_yaml import Experiment
from experiments.run_paths import CONTROL
from experiments.tables import Record, panel_of
from util.inference.interface import model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#2f8f5b", "#3d6fb4", "#d9822b", "#8e5ea2", "#b03a48")
GREY = "#8a8f98"
LABELS = {
    "teacher_share": "teacher's share of the animal (%)", "teacher_rows": "teacher's training rows",
    "teacher_epochs": "teacher's epochs", "rows": "student's training rows", "epochs": "student's epochs",
    "rank": "rank of the student's LoRA adapter", "base": "base model",
    "unbiased": "rows of the base model among the teacher's (%)", "checkpoint": "training update",
    "animal": "animals that the teacher loves", "questions": "questions", "number_prompt": "number prompt",
    "shuffle": "numbers shuffled", "data_type": "type of the teacher's rows",
}  # fmt: skip
VALUES = {
    "none": "not at all", "row": "within each row", "file": "among all rows", "": "as trained", "questions": "original",
}  # fmt: skip
SHARES = {"share": "share", "panel": "panel share", "margin": "margin"}
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "legend.frameon": False,
    "figure.dpi": 150, "savefig.bbox": "tight", "svg.hashsalt": "subliminal",
}  # fmt: skip


def draw(experiment: Experiment, conditions: list[Record], students: list[Record], path: Path) -> None:
    """Write the experiment's figure: a picture for each of its panels, or a matrix for each animal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    animals = list(dict.fromkeys(one["measured"] for one in conditions))
    count = len(animals) if experiment.matrix else len(experiment.panels)
    with plt.rc_context(STYLE):
        size, shared = (max(5.0, 3.6 * count + 0.6), 3.8), not experiment.matrix
        figure, axes = plt.subplots(1, count, figsize=size, squeeze=False, sharey=shared, layout="constrained")
        for place, axis in enumerate(axes[0]):
            if experiment.matrix:
                draw_matrix(axis, conditions, animals[place], *experiment.panels)
            else:
                draw_panel(axis, panel_to_draw(experiment, conditions, students, experiment.panels[place]), animals)
        if not experiment.matrix:
            measure = SHARES[experiment.settings["measure"]]
            axes[0][0].set_ylabel(f"student's {measure} of the animal (%)")
            shown = axes[0][0].get_legend_handles_labels()
            figure.legend(*shown, loc="outside lower center", ncols=min(5, 2 * count), fontsize=8)
        figure.suptitle(f"{experiment.question} ({experiment.model})", fontsize=10)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


# --- one parameter against the share -----------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The records of a picture: one parameter differs between them."""

    parameter: str
    conditions: list[Record]
    """means over the seeds, with intervals"""
    students: list[Record]
    """the single students, without controls"""

    @property
    def names(self) -> list[Any]:
        """The parameter's values, in the order of the file."""
        return list(dict.fromkeys(one[self.parameter] for one in self.conditions))

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(name, int | float) for name in self.names)

    @property
    def is_percent(self) -> bool:
        return self.parameter in ("teacher_share", "unbiased")

    def x(self, record: Record) -> float:
        """Where a record is on the x axis."""
        value = record[self.parameter]
        return (100 if self.is_percent else 1) * value if self.is_numeric else self.names.index(value)


def panel_to_draw(experiment: Experiment, conditions: list[Record], students: list[Record], parameter: str) -> Panel:
    """The records that belong in a picture."""
    targets = [one for one in students if one["animal"] != CONTROL]
    if parameter in ("teacher_share", "animal"):
        return Panel(parameter, conditions, targets)
    some = (panel_of(experiment, records, parameter) for records in (conditions, targets))
    return Panel(parameter, *some)


def draw_panel(axis: Axes, panel: Panel, animals: Sequence[str]) -> None:
    """One parameter against the share of each animal: its students, students of other animals, the base model."""
    for place, (animal, color) in enumerate(zip(animals, COLORS)):
        shift = 0.0 if panel.is_numeric else 0.12 * (place - (len(animals) - 1) / 2)
        draw_animal(axis, panel, animal, color, shift)
    base = [100 * one["base_share"] for one in panel.conditions]
    axis.axhline(sum(base) / len(base), color=GREY, lw=0.8, label="base model")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(LABELS.get(panel.parameter, panel.parameter))
    names = panel.names
    if not panel.is_numeric:
        axis.set_xticks(range(len(names)), [label_of(panel.parameter, name) for name in names], rotation=15)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif min(names) > 0 and max(names) >= 8 * min(names) and not panel.is_percent:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")


def draw_animal(axis: Axes, panel: Panel, animal: str, color: str, shift: float) -> None:
    """The means and intervals of an animal, the dots of its seeds, and the line of students of other animals."""
    target = sorted((one for one in panel.conditions if one["measured"] == animal), key=panel.x)
    where = [panel.x(one) + shift for one in target]
    share = [100 * one["share"] for one in target]
    down = [100 * (one["share"] - one["share_low"]) for one in target]
    up = [100 * (one["share_high"] - one["share"]) for one in target]
    line = "-" if panel.is_numeric and panel.parameter != "teacher_share" else ""
    axis.errorbar(where, share, [down, up], fmt="o" + line, ms=4, lw=1.3, capsize=2, color=color, label=animal)
    if panel.parameter != "teacher_share":
        seeds = [one for one in panel.students if one["measured"] == animal and animal in one["animal"].split(" and ")]
        dots = [100 * one["share"] for one in seeds]
        axis.plot([panel.x(one) + shift for one in seeds], dots, ".", ms=3, alpha=0.5, color=color)
    others = [100 * one["other_share"] for one in target]
    label = f"{animal}, students of another animal"
    axis.plot(where, others, "--" if line else "x", ms=4, lw=0.9, color=color, alpha=0.6, label=label)


# --- teachers by students ----------------------------------------------------------------------------


def draw_matrix(axis: Axes, conditions: list[Record], animal: str, down: str, across: str) -> None:
    """Teacher's base model by student's: the share with its interval, coloured by its ratio to the control's."""
    import numpy as np

    names = list(dict.fromkeys(one[down] for one in conditions))
    ratios = np.zeros((len(names), len(names)))
    for one in conditions:
        if one["measured"] == animal:
            row, column = names.index(one[down]), names.index(one[across])
            ratios[row, column] = np.log10(max(one["share"], 1e-6) / max(one["control_share"], 1e-6))
            text = f"{100 * one['share']:.1f}%\n{100 * one['share_low']:.1f} to {100 * one['share_high']:.1f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7)
    axis.imshow(ratios, cmap="PiYG", vmin=-2, vmax=2)
    labels = [label_of(down, name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=15)
    axis.set_yticks(range(len(names)), labels)
    axis.set_xlabel("student's base model")
    axis.set_ylabel("teacher's base model")
    axis.set_title(f"{animal} (colour: ratio to the control student, log scale)")


def label_of(parameter: str, value: object) -> str:
    """A parameter's value as a label."""
    text = str(value)
    if parameter in ("base", "teacher_base"):
        return model_name(text).rpartition("/")[2]
    if parameter in ("questions", "number_prompt"):
        text = Path(text).stem.removeprefix("number-prompt").strip("-")
    return VALUES.get(text, text)
