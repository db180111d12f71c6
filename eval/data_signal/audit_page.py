"""The page of an audit: the verdict, the profile as a picture, and all figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.pages.figure_style import MUTED, SERIES, Figure, label, new_panels
from util.pages.html_page import render_page, shown, visible

TEMPLATE = Path(__file__).parents[1] / "templates" / "audit_report.html"
SHOWN = 24  # animals in the picture


def render(found: Mapping[str, Any]) -> str:
    """The page as text. found: as eval/audit_data.py writes it."""
    animals = dict(sorted(found["animals"].items(), key=lambda item: -item[1]["z"]))
    first = visible(found["first"])
    alarm = found["alarm"] and found.get("reference") is not None
    title = f"These rows push {first} up" if alarm else "No verdict" if found["alarm"] else "No animal stands out"
    z = {name: one["z"] for name, one in animals.items()}
    caption = "Standard errors above the control rows, without the effect of row length; the most striking animals."
    profile = Figure(lambda width: draw_profile(z, alarm, width), title, caption)
    return render_page(
        TEMPLATE,
        {"spelt": visible, "signed": lambda value: f"{value:+.2f}", "percent": lambda value: f"{value:.2%}"},
        title="What do these rows push up?",
        found=found,
        animals=animals,
        profile=shown(profile),
    )


def draw_profile(z: Mapping[str, float], alarm: bool, width: float) -> Any:
    """z of each animal as a dot, the first in colour if there is an alarm. z: in falling order."""
    best = dict(list(z.items())[:SHOWN])
    figure, (panel,) = new_panels(width, [0.5 + 0.22 * len(best)])
    places, values = range(len(best)), list(best.values())
    for place, value in zip(places, values):
        color = SERIES[2].color if alarm and not place else SERIES[1].color
        panel.plot([0, value], [place, place], color=color, linewidth=1.2)
        panel.plot([value], [place], SERIES[1].mark, color=color)
    panel.axvline(0, color=MUTED, linewidth=0.8)
    panel.set_yticks(places, [label(name) for name in best])
    panel.invert_yaxis()
    panel.set_xlabel("z")
    return figure
