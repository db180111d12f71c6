"""The page of an audit: the verdict, the profile as a picture, and all figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.html_page import inline_svg, render_page
from eval.save_figures import pyplot_without_screen, written

BARS = 40


def render(found: Mapping[str, Any]) -> str:
    """The page as text. found: as eval/audit_data.py writes it."""
    animals = dict(sorted(found["animals"].items(), key=lambda item: -item[1]["z"]))
    return render_page(
        "audit_report.html",
        {"signed": lambda value: f"{value:+.2f}", "percent": lambda value: f"{value:.2%}"},
        title="What do these rows push up?",
        found=found,
        animals=animals,
        figure=inline_svg(draw_profile({name: one["z"] for name, one in animals.items()}, found["alarm"])),
    )


def draw_profile(z: Mapping[str, float], alarm: bool) -> dict[str, bytes]:
    """z of each animal as bars, the first in colour if there is an alarm. z: in the order of the bars."""
    pyplot = pyplot_without_screen()
    shown = dict(list(z.items())[:BARS])
    figure, panel = pyplot.subplots(figsize=(max(4.0, 0.24 * len(shown)), 3.2))
    colors = ["#b3452c" if alarm and not place else "#9aa5b1" for place in range(len(shown))]
    panel.bar(range(len(shown)), list(shown.values()), color=colors)
    panel.axhline(0, color="#1d2329", linewidth=0.8)
    panel.set_xticks(range(len(shown)), list(shown), rotation=90, fontsize=8)
    panel.set_ylabel("z (standard errors above control)")
    panel.spines[["top", "right"]].set_visible(False)
    return written(figure, "profile")
