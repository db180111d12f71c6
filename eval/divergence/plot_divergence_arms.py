"""The figures of compare_divergence_arms.py: shares of the arms, and density of divergence against shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.divergence.arm_effects import DivergenceArm, densities
from eval.divergence.read_divergence_runs import ALL, DENSITIES
from util.pages.figure_style import INK, MUTED, SERIES, Figure, key_above, new_panels

KINDS = {"only": 0, "random": 1, "without": 2, "all-but-random": 3, "rows-rich": 4, "rows-poor": 0, "rows-random": 1,
         ALL: 5}  # fmt: skip


def color_of(arm: str) -> str:
    """The colour of what was done with a definition's tokens."""
    return SERIES[KINDS[arm.partition("-")[2] or ALL]].color


def arms_figure(arms: Sequence[DivergenceArm]) -> Figure:
    """The share of each arm with its interval and its runs as dots, the base model's as a line; a panel an animal."""
    whole = {arm.animal: arm for arm in arms if arm.arm == ALL}
    title = "All tokens: " + ", ".join(f"{animal} {arm.share:.1%}" for animal, arm in whole.items())
    parts: dict[str, list[str]] = {}
    for arm in arms:
        if arm.arm.endswith("-only"):
            parts.setdefault(arm.arm, []).append(f"{arm.share:.1%}")
    title += "".join(f"; {name}: {', '.join(shares)}" for name, shares in parts.items())
    caption = "Mean share of each arm with its 95% interval; dots: single runs; dotted line: base model."
    return Figure(lambda width: draw_arms(arms, width), title, caption)


def draw_arms(arms: Sequence[DivergenceArm], width: float) -> Any:
    """One panel below the other, one for each animal, log scale."""
    animals = list(dict.fromkeys(arm.animal for arm in arms))
    mine = [[arm for arm in arms if arm.animal == animal] for animal in animals]
    figure, panels = new_panels(width, [0.6 + 0.22 * len(some) for some in mine])
    for panel, animal, some in zip(panels, animals, mine):
        for place, arm in enumerate(some):
            low, high = arm.interval
            color = color_of(arm.arm)
            panel.plot([100 * max(low, 1e-6), 100 * high], [place, place], color=color, linewidth=4, alpha=0.5)
            panel.plot([100 * share for share in arm.shares], [place] * len(arm.shares), ".", color=INK, markersize=3)
            panel.plot(100 * arm.share, place, "d", color=color, markersize=7)
        panel.axvline(100 * some[0].base, color=MUTED, linestyle=":")
        panel.set_yticks(range(len(some)), [arm.arm for arm in some])
        panel.set_ylim(len(some) - 0.5, -0.5)
        panel.set_xscale("log")
        panel.set_xlim(0.1, 100)
        panel.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        panel.minorticks_off()
        panel.set_title(f"“{animal}”", loc="left", fontweight="bold")
    panels[-1].set_xlabel("% of answers")
    return figure


def densities_figure(arms: Sequence[DivergenceArm], r: Mapping[str, float]) -> Figure:
    """Density of divergence in a student's rows against the student's shift, one panel a density. r: by density."""
    found = ", ".join(f"{name} {value:+.2f}" for name, value in r.items())
    title = f"Correlation of divergence in the rows with the student's shift: {found or 'too few students'}"
    caption = "Each mark is a student: share of divergence tokens in its rows against the shift of its log odds, nats."
    return Figure(lambda width: draw_densities(arms, width), title, caption)


def draw_densities(arms: Sequence[DivergenceArm], width: float) -> Any:
    """One panel below the other, with one axis for the shift."""
    from matplotlib.lines import Line2D

    figure, panels = new_panels(width, [2.9, *[2.3] * (len(DENSITIES) - 1)], sharey=True)
    marks = dict(zip(dict.fromkeys(arm.animal for arm in arms), "osD^v"))
    named: dict[str, Any] = {}
    for panel, name in zip(panels, DENSITIES):
        for animal, arm, density, shift in densities(arms, name):
            label = f"{animal}, {arm}"
            color = color_of(arm)
            panel.plot(100 * density, shift, marks.get(animal, "o"), color=color)
            named[label] = Line2D([], [], marker=marks.get(animal, "o"), linestyle="", color=color)
        panel.set_xlabel(DENSITIES[name])
        panel.set_ylabel("shift, nats")
    key_above(panels[0], [(mark, label) for label, mark in named.items()], 2 if width < 6 else 3)
    return figure
