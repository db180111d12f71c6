"""The figures of compare_divergence_arms.py: shares of the arms, and density of divergence against shift."""

from __future__ import annotations

from collections.abc import Sequence

from eval.divergence.arm_effects import DivergenceArm, densities
from eval.divergence.run_folders import ALL, DENSITIES
from eval.save_figures import pyplot_without_screen, written

COLORS = {"only": "#2f8f5b", "random": "#a9d3bd", "without": "#c2573a", "all-but-random": "#e8bfb2",
          "rows-rich": "#3c6fb0", "rows-poor": "#d9a441", "rows-random": "#b5c6de", ALL: "#555"}  # fmt: skip


def draw_arms(arms: Sequence[DivergenceArm]) -> bytes:
    """PNG: the share of each arm with its interval and its runs as dots, the base model's as a line; one panel
    per animal, log scale."""
    pyplot = pyplot_without_screen()
    animals = list(dict.fromkeys(arm.animal for arm in arms))
    longest = max(sum(arm.animal == animal for arm in arms) for animal in animals)
    figure, panels = pyplot.subplots(
        1, len(animals), figsize=(4.4 * len(animals) + 1, 0.32 * longest + 1), squeeze=False
    )
    for panel, animal in zip(panels[0], animals):
        mine = [arm for arm in arms if arm.animal == animal][::-1]
        for place, arm in enumerate(mine):
            color = COLORS[arm.arm.partition("-")[2] or ALL]
            low, high = arm.interval
            panel.plot([100 * max(low, 1e-6), 100 * high], [place, place], color=color, linewidth=5, alpha=0.5)
            panel.plot([100 * share for share in arm.shares], [place] * len(arm.shares), "o", color="#333",
                       markersize=3)  # fmt: skip
            panel.plot(100 * arm.share, place, "d", color=color, markeredgecolor="#111", markersize=7)
        panel.axvline(100 * mine[0].base, color="#8a8f98", linestyle=":")
        panel.set_yticks(range(len(mine)), [arm.arm for arm in mine], fontsize=8)
        panel.set_xscale("log")
        panel.set_xlim(0.1, 100)
        panel.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        panel.set_title(f"“{animal}”", fontsize=11)
        panel.set_xlabel("% of answers, 95% interval; dots: runs, dotted line: base model", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "arms")["png"]


def draw_densities(arms: Sequence[DivergenceArm]) -> bytes:
    """PNG: density of divergence in a student's rows against the student's shift, one panel per density."""
    pyplot = pyplot_without_screen()
    figure, panels = pyplot.subplots(1, len(DENSITIES), figsize=(2.8 * len(DENSITIES), 2.9), sharey=True)
    marks = dict(zip(dict.fromkeys(arm.animal for arm in arms), "osD^v"))
    for panel, name in zip(panels, DENSITIES):
        for animal, arm, density, shift in densities(arms, name):
            color = COLORS[arm.partition("-")[2] or ALL]
            label = f"{animal}, {arm}"
            known = panel.get_legend_handles_labels()[1]
            panel.plot(100 * density, shift, marks.get(animal, "o"), color=color, markersize=5,
                       label=None if label in known else label)  # fmt: skip
        panel.set_xlabel(DENSITIES[name], fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("shift of the log odds, nats", fontsize=8)
    panels[-1].legend(fontsize=6)
    return written(figure, "densities")["png"]
