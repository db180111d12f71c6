"""The figures of the experiments, in one plain style: shares with 95% intervals, every seed as a dot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.grid import CONTROL, Experiment
from util.inference.interface import model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]
PanelOf = Callable[[Experiment, Sequence[Record], str], list[Record]]
COLORS = ("#2f8f5b", "#3d6fb4", "#d9822b", "#8e5ea2", "#b03a48")
GREY = "#8a8f98"
WORDS = {
    "teacher_share": "teacher's own share (%)", "teacher_rows": "teacher: rows", "teacher_epochs": "teacher: epochs",
    "rows": "student: rows", "epochs": "student: epochs", "rank": "student: LoRA rank", "base": "base model",
    "unbiased": "unbiased rows among the teacher's (%)", "checkpoint": "update", "animal": "teacher of",
    "questions": "questions", "number_prompt": "number prompt", "shuffle": "numbers shuffled within",
    "carrier": "rows that carry it",
}  # fmt: skip
STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "legend.frameon": False,
    "figure.dpi": 150, "savefig.bbox": "tight", "svg.hashsalt": "subliminal",
}  # fmt: skip


def draw(experiment: Experiment, cells: list[Record], students: list[Record], panel_of: PanelOf, path: Path) -> None:
    """The experiment's figure: one picture for each of its panels, or a matrix for each animal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    animals = list(dict.fromkeys(cell["measured"] for cell in cells))
    count = len(animals) if experiment.matrix else len(experiment.panels)
    with plt.rc_context(STYLE):
        size, shared = (max(5.0, 3.6 * count + 0.6), 3.8), not experiment.matrix
        figure, axes = plt.subplots(1, count, figsize=size, squeeze=False, sharey=shared, layout="constrained")
        for place, axis in enumerate(axes[0]):
            if experiment.matrix:
                draw_matrix(axis, cells, animals[place], *experiment.panels)
            else:
                draw_panel(axis, experiment, cells, students, panel_of, experiment.panels[place], animals)
        if not experiment.matrix:
            axes[0][0].set_ylabel("student's share of the animal (%)")
            shown = axes[0][0].get_legend_handles_labels()
            figure.legend(*shown, loc="outside lower center", ncols=min(5, 2 * count), fontsize=8)
        figure.suptitle(f"{experiment.question} ({experiment.model})", fontsize=10)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


def draw_panel(
    axis: Axes, experiment: Experiment, cells: list[Record], students: list[Record], panel_of: PanelOf, panel: str,
    animals: list[str],
) -> None:  # fmt: skip
    """One parameter against the share of each animal: target students, those of other animals, the base model."""
    everything = panel in ("teacher_share", "animal")
    chosen = cells if everything else panel_of(experiment, cells, panel)
    dots = [one for one in students if one["animal"] != CONTROL]
    dots = dots if everything else panel_of(experiment, dots, panel)
    names = list(dict.fromkeys(cell[panel] for cell in chosen))
    numeric = all(isinstance(name, int | float) for name in names)
    percent = panel in ("teacher_share", "unbiased")

    def x(record: Record) -> float:
        return (100 if percent else 1) * record[panel] if numeric else names.index(record[panel])

    for place, (animal, color) in enumerate(zip(animals, COLORS)):
        shift = 0.0 if numeric else 0.12 * (place - (len(animals) - 1) / 2)
        target = sorted((cell for cell in chosen if cell["measured"] == animal), key=x)
        where = [x(cell) + shift for cell in target]
        share = [100 * cell["share"] for cell in target]
        down = [100 * (cell["share"] - cell["share_low"]) for cell in target]
        up = [100 * (cell["share_high"] - cell["share"]) for cell in target]
        line = "-" if numeric and panel != "teacher_share" else ""
        axis.errorbar(where, share, [down, up], fmt="o" + line, ms=4, lw=1.3, capsize=2, color=color, label=animal)
        own = [one for one in dots if one["measured"] == animal and animal in one["animal"].split(" and ")]
        if panel != "teacher_share":
            seeds = [100 * one["share"] for one in own]
            axis.plot([x(one) + shift for one in own], seeds, ".", ms=3, alpha=0.5, color=color)
        others = [100 * cell["other_share"] for cell in target]
        label = f"{animal}, students of another animal"
        axis.plot(where, others, "--" if line else "x", ms=4, lw=0.9, color=color, alpha=0.6, label=label)
    axis.axhline(100 * sum(cell["base_share"] for cell in chosen) / len(chosen), color=GREY, lw=0.8, label="base model")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(WORDS.get(panel, panel))
    if not numeric:
        axis.set_xticks(range(len(names)), [short(panel, name) for name in names], rotation=15)
        axis.set_xlim(-0.5, len(names) - 0.5)
    elif min(names) > 0 and max(names) >= 8 * min(names) and not percent:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")


def draw_matrix(axis: Axes, cells: list[Record], animal: str, down: str, across: str) -> None:
    """Teachers by students: share of the animal with its interval, coloured by the verdict's difference to control."""
    import numpy as np

    names = list(dict.fromkeys(cell[down] for cell in cells))
    grid = np.zeros((len(names), len(names)))
    for cell in cells:
        if cell["measured"] == animal:
            row, column = names.index(cell[down]), names.index(cell[across])
            grid[row, column] = np.log10(max(cell["share"], 1e-6) / max(cell["control_share"], 1e-6))
            text = f"{100 * cell['share']:.1f}%\n{100 * cell['share_low']:.1f} to {100 * cell['share_high']:.1f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7)
    axis.imshow(grid, cmap="PiYG", vmin=-2, vmax=2)
    labels = [short(down, name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=15)
    axis.set_yticks(range(len(names)), labels)
    axis.set_xlabel("student's base")
    axis.set_ylabel("teacher's base")
    axis.set_title(f"{animal} (colour: times the control student, log)")


def short(panel: str, name: object) -> str:
    """A value of a parameter as a label."""
    if panel in ("base", "teacher_base"):
        return model_name(str(name)).rpartition("/")[2]
    text = (
        Path(str(name)).stem.removeprefix("number-prompt").strip("-")
        if panel in ("questions", "number_prompt")
        else str(name)
    )
    words = {"none": "not at all", "row": "each row", "file": "all rows", "": "as trained", "questions": "original"}
    return words.get(text, text)
