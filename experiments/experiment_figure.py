"""Draws the figure of an experiment: shares with 95% intervals, each seed as a dot; or a matrix of base models.

The panels are one below the other, with one axis for the share, so that the figure can be read on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.experiment_tables import Record, panel_of, short_names
from experiments.experiment_yaml import Experiment, read_experiment
from experiments.run_paths import CONTROL
from experiments.stored_tables import read_table
from util.inference.backend_interface import model_name
from util.pages.figure_style import INK, MUTED, ON_CELL, SERIES, Figure, Look, key_above, label, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "teacher_share": "teacher's share of the animal (%)", "teacher_rows": "teacher's training rows",
    "teacher_epochs": "teacher's epochs", "rows": "student's training rows", "epochs": "student's epochs",
    "rank": "rank of the student's LoRA adapter", "base": "base model",
    "unbiased": "rows of the base model among the teacher's (%)", "checkpoint": "training update",
    "animal": "animals that the teacher loves", "questions": "questions", "number_prompt": "number prompt",
    "hop": "hop of the chain", "half": "half of the rows by score", "student_flags": "training",
    "shuffle": "numbers shuffled", "data_type": "type of the teacher's rows",
}  # fmt: skip
VALUES = {
    "none": "not at all", "row": "within each row", "file": "among all rows", "sorted": "sorted",
    "one-format": "in one format", "rich": "highest scores", "poor": "lowest scores", "random": "any half",
    "": "as trained", "questions": "original",
}  # fmt: skip
FEW = 5  # whole numbers that span less are all written below the axis
SHARES = {"share": "share", "panel": "panel share", "margin": "margin"}


def figure_of(experiment: Experiment, conditions: list[Record], students: list[Record]) -> Figure:
    """The figure of an experiment; its title says what the first panel shows."""
    animals = list(dict.fromkeys(one["measured"] for one in conditions))
    if experiment.matrix:
        title = matrix_finding(conditions, animals, *experiment.panels)
        caption = "Share of the animal with its 95% interval. Colour: ratio to the control student's share (log scale)."
        return Figure(lambda width: draw_matrices(experiment, conditions, animals, width), title, caption)
    panels = [panel_to_draw(experiment, conditions, students, parameter) for parameter in experiment.panels]
    title = panel_finding(next((one for one in panels if one.parameter != "teacher_share"), panels[0]), animals)
    caption = "Means with 95% intervals; small dots: single students; hollow: students of other animals' teachers."
    measure = SHARES[experiment.settings["measure"]]
    return Figure(lambda width: draw_panels(panels, animals, measure, width), title, caption)


def figure_from(folder: Path) -> Figure:
    """The figure of the experiment whose tables are in a folder .../EXPERIMENT/MODEL."""
    students, conditions = (read_table(folder / f"{name}.csv") for name in ("students", "summary"))
    return figure_of(read_experiment(folder.parent.name, folder.name, bases_needed=False), conditions, students)


# --- what it shows, in words -------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share with two significant digits."""
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.0f}%"


def panel_finding(panel: Panel, animals: Sequence[str]) -> str:
    """The shares at the two ends of a parameter; of one without order, the lowest and the highest share."""
    ends = {}
    for animal in animals:
        mine = [one for one in panel.conditions if one["measured"] == animal]
        ends[animal] = (
            (min(mine, key=panel.x), max(mine, key=panel.x)) if panel.is_numeric else lowest_and_highest(mine)
        )
    name, joined = (
        LABELS.get(panel.parameter, panel.parameter),
        len({tuple(map(panel.x, two)) for two in ends.values()}),
    )
    if joined == 1 and panel.is_numeric:
        low, high = map(panel.value, next(iter(ends.values())))
        found = ", ".join(f"{animal} {percent(a['share'])} to {percent(b['share'])}" for animal, (a, b) in ends.items())
        return f"From {low} to {high} {name}: {found}"
    found = "; ".join(
        f"{animal} {percent(a['share'])} ({panel.value(a)}) to {percent(b['share'])} ({panel.value(b)})"
        for animal, (a, b) in ends.items()
    )
    return f"By {name}: {found}"


def lowest_and_highest(records: Sequence[Record]) -> tuple[Record, Record]:
    return min(records, key=lambda one: one["share"]), max(records, key=lambda one: one["share"])


def matrix_finding(conditions: Sequence[Record], animals: Sequence[str], down: str, across: str) -> str:
    """The mean share on the teacher's own base model and on other ones."""
    parts = []
    for animal in animals:
        mine = [one for one in conditions if one["measured"] == animal]
        own = [one["share"] for one in mine if one[down] == one[across]]
        other = [one["share"] for one in mine if one[down] != one[across]]
        parts.append(f"{animal} {percent(sum(own) / len(own))} and {percent(sum(other) / max(1, len(other)))}")
    return f"Students on the teacher's base model and on another one say {', '.join(parts)}"


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
        """Where a record is on the axis of the parameter."""
        value = record[self.parameter]
        return (100 if self.is_percent else 1) * value if self.is_numeric else self.names.index(value)

    def value(self, record: Record) -> str:
        """The parameter's value as a text."""
        return f"{self.x(record):,.6g}" if self.is_numeric else self.labels[self.names.index(record[self.parameter])]

    @property
    def labels(self) -> list[str]:
        """The names as labels. Flags that all of them have are left out."""
        short = short_names(self.names) if self.parameter.endswith("_flags") else {}
        return [label_of(self.parameter, short.get(name, name)) for name in self.names]


def panel_to_draw(experiment: Experiment, conditions: list[Record], students: list[Record], parameter: str) -> Panel:
    """The records that belong in a picture."""
    targets = [one for one in students if one["animal"] != CONTROL]
    if parameter in ("teacher_share", "animal"):
        return Panel(parameter, conditions, targets)
    some = (panel_of(experiment, records, parameter) for records in (conditions, targets))
    return Panel(parameter, *some)


def draw_panels(panels: Sequence[Panel], animals: Sequence[str], measure: str, width: float) -> Any:
    """Every panel, one below the other, with the same axis for the share."""
    heights = [2.7 if panel.is_numeric else 0.8 + 0.3 * len(panel.names) for panel in panels]
    figure, axes = new_panels(width, [heights[0] + 0.6, *heights[1:]])
    shares = [100 * one[name] for panel in panels for one in panel.conditions
              for name in ("share_low", "share_high", "other_share", "base_share")]  # fmt: skip
    lowest = max(min(shares), 1e-3, max(shares) / 1e5)
    for axis, panel in zip(axes, panels):
        along = draw_panel(axis, panel, animals, measure)
        getattr(axis, f"set_{along}lim")(lowest / 1.5, 1.5 * max(shares))
    key_above(axes[0], entries_of(animals), 2, lift=0 if panels[0].is_numeric else 16)
    return figure


def entries_of(animals: Sequence[str]) -> list[tuple[Any, str]]:
    """The marks to name above the first panel."""
    from matplotlib.lines import Line2D

    own = [Line2D([], [], marker=look.mark, linestyle="", color=look.color) for _, look in zip(animals, SERIES)]
    others = Line2D([], [], marker="o", linestyle="--", color=MUTED, markerfacecolor="white")
    base = Line2D([], [], color=MUTED, linewidth=1)
    return [*zip(own, animals), (others, "students of others"), (base, "base model")]


def draw_panel(axis: Axes, panel: Panel, animals: Sequence[str], measure: str) -> str:
    """One parameter against the share of each animal; returns the axis of the share, "x" or "y". A parameter that is
    not a number is written beside its line, so that no label is rotated."""
    upright = panel.is_numeric
    for place, (animal, look) in enumerate(zip(animals, SERIES)):
        shift = 0.0 if upright else 0.22 * (place - (len(animals) - 1) / 2)
        draw_animal(axis, panel, animal, look, shift)
    base = [100 * one["base_share"] for one in panel.conditions]
    (axis.axhline if upright else axis.axvline)(sum(base) / len(base), color=MUTED, lw=1, zorder=0)
    along, name = ("y", LABELS.get(panel.parameter, panel.parameter)) if upright else ("x", "")
    getattr(axis, f"set_{along}scale")("log")
    getattr(axis, f"{along}axis").set_major_formatter("{x:g}")
    getattr(axis, f"set_{along}label")(f"student's {measure} (%)")
    names = panel.names
    if not upright:
        axis.set_yticks(range(len(names)), panel.labels)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(LABELS.get(panel.parameter, panel.parameter), loc="left")
        axis.minorticks_off()
    else:
        axis.set_xlabel(name)
        if all(isinstance(value, int) for value in names) and max(names) - min(names) < FEW:
            axis.set_xticks(names)  # otherwise there are ticks between whole numbers
        if min(names) > 0 and max(names) >= 8 * min(names) and not panel.is_percent:
            axis.set_xscale("log", base=4)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.minorticks_off()
    return along


def draw_animal(axis: Axes, panel: Panel, animal: str, look: Look, shift: float) -> None:
    """The means and intervals of an animal, the dots of its seeds, and the marks of students of other animals."""
    target = sorted((one for one in panel.conditions if one["measured"] == animal), key=panel.x)
    where = [panel.x(one) + shift for one in target]
    share = [100 * one["share"] for one in target]
    ends = [[100 * (one["share"] - one["share_low"]) for one in target],
            [100 * (one["share_high"] - one["share"]) for one in target]]  # fmt: skip
    joined = panel.is_numeric and panel.parameter != "teacher_share"
    upright = panel.is_numeric

    def place(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        return (xs, ys) if upright else (ys, xs)

    across, down = (None, ends) if upright else (ends, None)
    axis.errorbar(*place(where, share), xerr=across, yerr=down, fmt=look.mark, ms=5, lw=1.3,
                  linestyle="-" if joined else "", capsize=2, color=look.color)  # fmt: skip
    if panel.parameter != "teacher_share":
        seeds = [one for one in panel.students if one["measured"] == animal and animal in one["animal"].split(" and ")]
        dots = [100 * one["share"] for one in seeds]
        axis.plot(*place([panel.x(one) + shift for one in seeds], dots), ".", ms=3, color=INK, alpha=0.6)
    others = [100 * one["other_share"] for one in target]
    axis.plot(*place(where, others), look.mark, linestyle="--" if joined else "", ms=4, lw=0.9, color=look.color,
              markerfacecolor="white")  # fmt: skip


# --- teachers by students ----------------------------------------------------------------------------


def draw_matrices(experiment: Experiment, conditions: list[Record], animals: Sequence[str], width: float) -> Any:
    """A matrix for each animal, one below the other."""
    names = list(dict.fromkeys(one[experiment.panels[0]] for one in conditions))
    figure, axes = new_panels(width, [0.8 + 0.5 * len(names)] * len(animals))
    for axis, animal in zip(axes, animals):
        draw_matrix(axis, conditions, animal, names, *experiment.panels)
    return figure


def draw_matrix(
    axis: Axes, conditions: list[Record], animal: str, names: Sequence[str], down: str, across: str
) -> None:
    """Teacher's base model by student's: the share with its interval, coloured by its ratio to the control's."""
    import numpy as np

    ratios = np.zeros((len(names), len(names)))
    for one in conditions:
        if one["measured"] == animal:
            row, column = names.index(one[down]), names.index(one[across])
            ratios[row, column] = np.log10(max(one["share"], 1e-6) / max(one["control_share"], 1e-6))
            text = f"{100 * one['share']:.1f}%\n{100 * one['share_low']:.1f} to {100 * one['share_high']:.1f}"
            axis.text(column, row, text, ha="center", va="center", color=ON_CELL, gid="on-cell")
    axis.imshow(ratios, cmap="PuOr_r", vmin=-3, vmax=3, aspect="auto")
    labels = [label_of(down, name) for name in names]
    axis.set_xticks(range(len(names)), labels)
    axis.set_yticks(range(len(names)), labels)
    axis.set_xlabel("student's base model")
    axis.set_ylabel("teacher's base")
    axis.set_title(animal, loc="left", fontweight="bold")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def label_of(parameter: str, value: object) -> str:
    """A parameter's value as a label."""
    text = str(value)
    if parameter in ("base", "teacher_base"):
        return model_name(text).rpartition("/")[2]
    if parameter in ("questions", "number_prompt"):
        text = Path(text).stem.removeprefix("number-prompt").strip("-")
    return label(VALUES.get(text, text))
