"""The figures of eval/report.py: arms of every animal, animals by students, students by teachers, a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.compare.comparison_result import ArmComparison, AssignmentTest, Matrix, ProfileTest
from eval.compare.intervals import Ends
from util.pages.figure_style import ARMS, INK, MUTED, ON_CELL, SERIES, Figure, key_above, label, new_panels
from util.terminal import in_words

AXES = {"share": (100.0, "% of answers"), "panel": (100.0, "% of one-word answers"), "margin": (1.0, "margin in nats")}
FEW = 3  # animals up to which every arm has a line of its own, with its name and value
ROW = 0.2  # inches
MOST_POINTS = 600  # of a figure; of more, every second, third, ... is drawn


@dataclass(frozen=True)
class Checkpoint:
    """The shares of some animals at one update of a training."""

    run: str
    update: int
    shares: dict[str, float]
    intervals: dict[str, Ends]
    """95%, over questions"""


# --- every animal in every arm -----------------------------------------------------------------------


def arms_figure(comparisons: Sequence[ArmComparison], title: str) -> Figure:
    """The arms of all animals on one axis: a mark with its 95% interval for each."""
    _, unit = AXES[comparisons[0].measure]
    draw = draw_few if len(comparisons) <= FEW else draw_many
    seeds = max(arm.seeds for one in comparisons for arm in one.shares.values())
    over = "questions and students" if seeds > 1 else "questions"
    caption = f"Each mark is the mean of an arm, in {unit}, with its 95% interval over {over}."
    return Figure(lambda width: draw(comparisons, width), title, caption)


def scaled(comparison: ArmComparison, role: str) -> tuple[float, float, float]:
    """(mean, low, high) of an arm in the unit of the axis."""
    arm, (factor, _) = comparison.shares[role], AXES[comparison.measure]
    return factor * arm.share, factor * min(arm.interval[0], arm.share), factor * max(arm.interval[1], arm.share)


def draw_mark(panel: Any, place: float, values: tuple[float, float, float], role: str) -> Any:
    """One arm's mark with its interval; returns the mark."""
    mean, low, high = values
    look = ARMS[role]
    panel.plot([low, high], [place, place], color=look.color, linewidth=1.6)
    (mark,) = panel.plot(mean, place, look.mark, color=look.color, markeredgewidth=2 if look.mark == "|" else 1,
                         markersize=9 if look.mark == "|" else 6)  # fmt: skip
    return mark


def set_axis(panel: Any, comparisons: Sequence[ArmComparison], room: float = 1.0) -> None:
    """The common axis: logarithmic for shares that differ more than tenfold. room: to the right, for text."""
    values = [scaled(one, role) for one in comparisons for role in one.shares]
    means, highest = [mean for mean, _, _ in values], max(high for _, _, high in values)
    unit = AXES[comparisons[0].measure][1]
    if unit.startswith("%") and max(means) > 10 * max(min(means), 1e-9):
        lowest = max(min(means) / 3, max(means) / 1e5)
        panel.set_xscale("log")
        panel.set_xlim(lowest, highest * (highest / lowest) ** (room - 1))
        powers = [10.0**power for power in range(-5, 3)]  # no tick above 100%
        panel.set_xticks(
            [tick for tick in powers if lowest <= tick], [f"{tick:g}" for tick in powers if lowest <= tick]
        )
        panel.minorticks_off()
    else:
        lowest = min(0.0 if unit.startswith("%") else min(means), min(low for _, low, _ in values))
        panel.set_xlim(lowest - 0.02 * (highest - lowest), highest + (room - 0.98) * (highest - lowest))
    panel.set_xlabel(unit)
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)


def draw_few(comparisons: Sequence[ArmComparison], width: float) -> Any:
    """One line for each arm of each animal, with its name and its value."""
    roles = list(comparisons[0].shares)
    figure, (panel,) = new_panels(width, [0.55 + ROW * 1.15 * len(comparisons) * (len(roles) + 1.2)])
    set_axis(panel, comparisons, 1.25 if width > 6 else 1.5)
    places, names = [], []
    for number, comparison in enumerate(comparisons):
        top = number * (len(roles) + 1.2)
        panel.text(0, top, f"“{label(comparison.animal)}”", transform=panel.get_yaxis_transform(), va="center",
                   fontweight="bold")  # fmt: skip
        for line, role in enumerate(comparison.shares, 1):
            values = scaled(comparison, role)
            draw_mark(panel, top + line, values, role)
            text = f"{values[0]:+.2f}" if comparison.measure == "margin" else f"{values[0]:.2f}%"
            panel.annotate(text, (values[2], top + line), (7, 0), textcoords="offset points", va="center",
                           color=ARMS[role].color, fontweight="bold")  # fmt: skip
            places.append(top + line)
            names.append(ARMS[role].title)
    panel.set_yticks(places, names)
    panel.set_ylim(max(places) + 0.7, -0.7)
    return figure


def draw_many(comparisons: Sequence[ArmComparison], width: float) -> Any:
    """The four arms of an animal close together, named above the panel in their colours."""
    roles = list(comparisons[0].shares)
    step = ROW * 1.9
    figure, (panel,) = new_panels(width, [1.1 + step * len(comparisons)])
    marks = {}
    for place, comparison in enumerate(comparisons):
        for line, role in enumerate(comparison.shares):
            shift = 0.19 * (line - (len(roles) - 1) / 2)
            marks[role] = draw_mark(panel, place + shift, scaled(comparison, role), role)
        if place % 2:
            panel.axhspan(place - 0.5, place + 0.5, color=MUTED, alpha=0.08, linewidth=0)
    set_axis(panel, comparisons, 1.03)
    panel.set_yticks(range(len(comparisons)), [label(one.animal) for one in comparisons])
    panel.set_ylim(len(comparisons) - 0.5, -0.5)
    key_above(panel, [(mark, ARMS[role].title) for role, mark in marks.items()], 4 if width > 6 else 2)
    return figure


# --- animals by students -----------------------------------------------------------------------------


def matrix_figure(found: Matrix) -> Figure:
    """Every taught animal (columns) in the students of every kind (rows), without the effects of row and column."""
    lift = found.lifts[-1] if len(found.lifts) < 2 else found.lifts[1]
    title = (
        f"{lift.above} of {len(found.animals)} animals are higher in their own students than row and column explain,"
        f" by {lift.mean:+.2f} nats on average ({lift.interval[0]:.2f} to {lift.interval[1]:.2f})"
    )
    caption = (
        "Rows: students of each kind of teacher. Columns: the animal that is measured. Cells: nats (log odds) without"
        " the effects of row and column. Framed: an animal in its own students."
    )
    return Figure(lambda width: draw_matrix(found.residuals, found.kinds, found.animals, width), title, caption)


def assignment_figure(found: AssignmentTest) -> Figure:
    """The same from a comparison without a matrix: the margin of each animal less its mean over all students."""
    means = [sum(column) / len(column) for column in zip(*found.margins)]
    lifts = [[margin - mean for margin, mean in zip(row, means)] for row in found.margins]
    count = len(found.animals)
    title = f"{found.own_highest} of {count} animals are highest in their own students"
    caption = (
        "Rows: students of each animal's teacher. Columns: the animal that is measured. Cells: its margin less its mean"
        " over all students, in nats. Framed: an animal in its own students."
    )
    return Figure(lambda width: draw_matrix(lifts, found.animals, found.animals, width), title, caption)


def draw_matrix(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], width: float) -> Any:
    """A table of coloured cells, with numbers where they fit; a cell whose row and column have one name is framed."""
    from matplotlib.patches import Rectangle

    row_names, column_names = ([label(name) for name in names] for names in (rows, columns))
    widest = max(abs(value) for row in values for value in row) or 1.0
    cell = (width - 1.1) * 72 / len(columns)  # points
    height = max(13.0, min(24.0, cell)) / 72
    figure, (panel,) = new_panels(width, [0.2 + height * len(rows) + (0.9 if cell >= 12 else 0.35)])
    panel.imshow(values, cmap="PuOr_r", vmin=-1.3 * widest, vmax=1.3 * widest, aspect="auto")
    digits = 2 if cell >= 36 else 1
    for place, row in enumerate(values):
        for other, value in enumerate(row):
            own = rows[place] == columns[other]
            if cell >= 22:
                text = f"{round(value, digits) + 0.0:+.{digits}f}"
                panel.text(other, place, text, ha="center", va="center", color=ON_CELL, gid="on-cell",
                           fontweight="bold" if own else "normal")  # fmt: skip
            if own:
                panel.add_patch(Rectangle((other - 0.5, place - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1.6))
    panel.set_yticks(range(len(rows)), row_names)
    if cell >= 12:
        upright = cell < 6.5 * max(map(len, column_names))
        panel.set_xticks(range(len(columns)), column_names, rotation=90 if upright else 0)
    else:
        panel.set_xticks([])
        panel.set_xlabel(in_words("the same animals, in the same order"))
    panel.xaxis.set_ticks_position("top")
    panel.xaxis.set_label_position("top")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return figure


# --- students against teachers -----------------------------------------------------------------------


def profile_figure(found: ProfileTest) -> Figure:
    """What the students of each kind say more or less often, against their own teacher and against the others."""
    title = (
        f"Students correlate with their own teacher by {found.own:.2f} and with other teachers by {found.other:.2f}"
        " over animals that nobody was taught"
    )
    caption = (
        f"Log-probabilities (nats) of {len(found.animals)} untaught animals, less the means over animals and kinds, of"
        f" the students of {len(found.kinds)} kinds."
    )
    return Figure(lambda width: draw_profile(found, width), title, caption)


def draw_profile(found: ProfileTest, width: float) -> Any:
    """Two panels: the students against their own teacher, and against the next one in the list."""
    from matplotlib import pyplot

    count, side = len(found.kinds), width > 6
    shape = (1, 2) if side else (2, 1)
    figure, grid = pyplot.subplots(*shape, figsize=(width, 3.4 if side else 5.6), sharex=True, sharey=True)
    every = max(1, count * len(found.animals) // MOST_POINTS)
    for panel, shift, name, look in zip(grid, (0, 1), ("own teacher", "another teacher"), (SERIES[0], SERIES[5])):
        teachers = [value for kind in range(count) for value in found.teachers[(kind + shift) % count]][::every]
        students = [value for kind in found.students for value in kind][::every]
        panel.plot(teachers, students, ".", color=look.color, markersize=3, alpha=0.7)
        panel.set_title(f"students against {name}", loc="left", color=look.color)
        panel.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        panel.axvline(0, color=MUTED, linewidth=0.6, zorder=0)
        panel.set_ylabel("student, nats")
    ends = [min(map(min, found.teachers)), max(map(max, found.teachers))]
    grid[0].plot(ends, [found.slope * end for end in ends], color=SERIES[0].color, linewidth=1.4)
    for panel in grid if side else grid[-1:]:
        panel.set_xlabel("teacher, nats")
    return figure


# --- over a training ---------------------------------------------------------------------------------


def trajectory_figure(points: Sequence[Checkpoint]) -> Figure:
    """The share of each animal over the updates of training, one line for each animal of each run."""
    runs = list(dict.fromkeys(point.run for point in points))
    last = max(points, key=lambda point: point.update)
    risen = max(last.shares, key=lambda animal: last.shares[animal])
    title = f"{risen} reaches {last.shares[risen]:.1%} after {last.update} updates of {last.run}"
    caption = f"Share of the answers at each checkpoint of {', '.join(runs)}, with 95% intervals over questions."
    return Figure(lambda width: draw_trajectory(points, width), title, caption)


def draw_trajectory(points: Sequence[Checkpoint], width: float) -> Any:
    """One line for each animal of each run; its name at its end."""
    runs = list(dict.fromkeys(point.run for point in points))
    figure, (panel,) = new_panels(width, [3.0])
    lines = [(run, animal) for run in runs for animal in next(one.shares for one in points if one.run == run)]
    for place, (run, animal) in enumerate(lines):
        look = SERIES[place % len(SERIES)]
        course = [(one.update, 100 * one.shares[animal]) for one in points if one.run == run]
        ends = [[100 * end for end in one.intervals[animal]] for one in points if one.run == run]
        panel.fill_between([update for update, _ in course], *zip(*ends), color=look.color, alpha=0.15, linewidth=0)
        name = label(animal if len(runs) == 1 else f"{animal}, {run}")
        panel.plot(*zip(*course), marker=look.mark, linestyle="-", color=look.color, label=name)
    panel.set_xlabel("updates")
    panel.set_ylabel("% of answers")
    panel.set_ylim(bottom=0)
    handles, labels = panel.get_legend_handles_labels()
    key_above(panel, list(zip(handles, labels)), max(1, int(width * 72 / (7 * max(map(len, labels)) + 30))))
    return figure
