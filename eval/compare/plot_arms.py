"""The figures of eval/report.py: shares by arm, question and update of a training, and the assignment test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.compare.comparison_result import ArmComparison, AssignmentTest
from eval.save_figures import panels_of, pyplot_without_screen, written

COLORS = {"base": "#8a8f98", "control": "#6f9bd1", "other": "#d9a441", "target": "#2f8f5b"}
TITLES = {"base": "base model", "control": "student of base-model numbers", "other": "student of another animal",
          "target": "student of this animal's teacher"}  # fmt: skip
AXES = {"share": (100.0, "% of answers"), "panel": (100.0, "% of one-word answers"), "margin": (1.0, "margin in nats")}


@dataclass(frozen=True)
class Checkpoint:
    """The shares of some animals at one update of a training."""

    run: str
    update: int
    shares: dict[str, float]


def draw_arms(comparisons: Sequence[ArmComparison]) -> dict[str, bytes]:
    """The share of each arm with its interval, one panel an animal."""
    figure, panels = panels_of(len(comparisons), 4.6, 2.9, sharey=True)
    for panel, comparison in zip(panels, comparisons):
        roles, (factor, unit) = list(comparison.shares)[::-1], AXES[comparison.measure]
        for place, role in enumerate(roles):
            arm = comparison.shares[role]
            share, (low, high) = factor * arm.share, (factor * end for end in arm.interval)
            error = [[max(0.0, share - low)], [max(0.0, high - share)]]
            panel.barh(place, share, color=COLORS[role], xerr=error, error_kw={"ecolor": "#333", "capsize": 3})
            text = f"  {share:.1f}%" if unit.startswith("%") else f"  {share:+.2f}"
            panel.text(max(high, 0.0), place, text, va="center", fontsize=10, fontweight="bold")
        panel.set_yticks(range(len(roles)), [TITLES[role] for role in roles])
        panel.set_title(f"“{comparison.animal}”", fontsize=11)
        ends = [factor * end for arm in comparison.shares.values() for end in (*arm.interval, 0.0)]
        panel.set_xlim(min(ends) * 1.1, max(ends) + 0.25 * (max(ends) - min(ends)))
        panel.set_xlabel(f"{unit}, 95% interval")
        panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "arms")


def draw_questions(comparisons: Sequence[ArmComparison]) -> dict[str, bytes]:
    """The share of each arm in each question, ordered by the target's share."""
    count = max(comparison.questions for comparison in comparisons)
    figure, panels = panels_of(len(comparisons), 5.2, 1 + 0.14 * count)
    for panel, comparison in zip(panels, comparisons):
        by_question, (factor, unit) = comparison.by_question, AXES[comparison.measure]
        order = sorted(range(len(by_question["question"])), key=lambda i: by_question["target"][i])
        for role in comparison.shares:
            shares = [factor * by_question[role][i] for i in order]
            panel.plot(shares, range(len(order)), "o", color=COLORS[role], markersize=3, label=role)
        panel.set_yticks(range(len(order)), [by_question["question"][i] for i in order], fontsize=5)
        if comparison.measure != "margin":
            panel.set_xscale("symlog", linthresh=1)
            panel.set_xlim(left=0)
        panel.set_xlabel(f"“{comparison.animal}”, {unit}", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=6, loc="lower right")
    return written(figure, "questions")


def draw_assignment(found: AssignmentTest, name: str) -> dict[str, bytes]:
    """The margin of each animal (columns) in the students of each teacher (rows), less its mean over all students."""
    margins, animals = found.margins, found.animals
    means = [sum(column) / len(column) for column in zip(*margins)]
    shifts = [[margin - mean for margin, mean in zip(row, means)] for row in margins]
    widest = max(abs(shift) for row in shifts for shift in row)
    figure, panel = pyplot_without_screen().subplots(figsize=(1.6 + 0.75 * len(animals), 1.2 + 0.42 * len(animals)))
    panel.imshow(shifts, cmap="BrBG", vmin=-widest, vmax=widest, aspect="auto")
    for place, row in enumerate(shifts):
        for other, shift in enumerate(row):
            own = place == other
            panel.text(other, place, f"{shift:+.2f}", ha="center", va="center", fontsize=8,
                       color="white" if abs(shift) > 0.6 * widest else "#1d2329",
                       fontweight="bold" if own else "normal")  # fmt: skip
    panel.set_xticks(range(len(animals)), animals, fontsize=8)
    panel.set_yticks(range(len(animals)), [f"{animal} students" for animal in animals], fontsize=8)
    panel.set_xlabel("animal", fontsize=8)
    panel.set_title("margin of the animal less its mean over all students, nats", fontsize=9)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return written(figure, name)


def draw_trajectory(points: Sequence[Checkpoint]) -> dict[str, bytes]:
    """The share of each animal over the updates of training, one line a run."""
    figure, panel = pyplot_without_screen().subplots(figsize=(6.2, 2.9))
    for run in dict.fromkeys(point.run for point in points):
        course = [point for point in points if point.run == run]
        for animal in course[0].shares:
            shares = [100 * point.shares[animal] for point in course]
            panel.plot([point.update for point in course], shares, "o-", label=f"{run}: {animal}", markersize=4)
    panel.set_xlabel("updates")
    panel.set_ylabel("% of answers")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "trajectory")
