"""How every figure of the suite looks: sizes, colours, marks and titles; as SVG for a page and PNG for a file.

A figure is drawn by a function of its width: `NARROW` for phones and PNG files, `WIDE` for the page on a larger screen.
Both have text of 10 points or more. A narrow figure that is shown 328 px wide (a phone of 360 px) has text of 10 px.

Colours are those of Okabe and Ito, darkened where text has them. Each arm also has a mark of its own, so that no figure
needs its colours.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from util.terminal import in_words

NARROW, WIDE = 4.4, 9.2  # inches
FONT, TITLE_FONT = 10, 11  # points
DPI = 144  # of PNG files
LONGEST_LABEL = 24  # characters
INK, MUTED, GRID, PAPER = "#1d2329", "#59616b", "#d5dae0", "#ffffff"
ON_CELL = "#1a1a1a"  # text on a coloured cell, on a dark page too


class Look(NamedTuple):
    """How the marks of one arm or series are drawn."""

    color: str
    mark: str
    """a marker of matplotlib"""
    title: str = ""


ARMS = {
    "base": Look("#5b6470", "|", "base model"),
    "control": Look("#0067a5", "s", "control students"),
    "other": Look("#b8530a", "^", "other students"),
    "target": Look("#00745a", "o", "own students"),
}  # fmt: skip
"""by role of compare_arms.py"""
SERIES = (
    Look("#00745a", "o"), Look("#0067a5", "s"), Look("#b8530a", "^"), Look("#a3447f", "D"), Look("#7a6a00", "v"),
    Look("#5b6470", "P"),
)  # fmt: skip
"""of what is not an arm: animals, definitions, trainings"""
DARK = {
    INK: "#e6e9ec", MUTED: "#a9b1ba", GRID: "#3a424b", PAPER: "#14181c", "#5b6470": "#a9b1ba", "#0067a5": "#6cb8ee",
    "#b8530a": "#f0975a", "#00745a": "#4cc9a4", "#a3447f": "#e59ccb", "#7a6a00": "#d6c65a",
}  # fmt: skip
"""the colour of each colour on a dark page"""
STYLE: Any = {
    "font.size": FONT, "axes.titlesize": FONT, "axes.labelsize": FONT, "xtick.labelsize": FONT,
    "ytick.labelsize": FONT, "legend.fontsize": FONT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.titlecolor": INK, "grid.color": GRID,
    "legend.frameon": False, "lines.markersize": 5, "svg.fonttype": "none", "text.parse_math": False,
    "figure.constrained_layout.use": True, "figure.facecolor": PAPER, "axes.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn when it is needed."""

    draw: Callable[[float], Any]
    """its width in inches -> the matplotlib figure"""
    title: str
    """what it shows, as a sentence"""
    caption: str
    """what is drawn"""

    def __post_init__(self) -> None:
        for field in ("title", "caption"):
            object.__setattr__(self, field, in_words(getattr(self, field)))

    def svg(self, width: float) -> str:
        """The SVG element for a page, with its colours as variables of the page (see `variables`)."""
        import matplotlib

        with styled() as pyplot, matplotlib.rc_context({"svg.hashsalt": f"{self.title} {width}"}):
            figure, buffer = self.draw(width), io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            pyplot.close(figure)
        text = buffer.getvalue()
        for color, name in names_of_colors().items():
            text = text.replace(color, f"var(--{name})")
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """The picture with its title, as a file."""
        with styled() as pyplot:
            figure, buffer = self.draw(NARROW), io.BytesIO()
            add_title(figure, self.title)
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            pyplot.close(figure)
        return buffer.getvalue()


class styled:
    """matplotlib's pyplot within a `with`: it draws into files, in the suite's style."""

    def __enter__(self) -> Any:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        self.context = matplotlib.rc_context(STYLE)
        self.context.__enter__()
        return pyplot

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def names_of_colors() -> dict[str, str]:
    """{colour of the style: its name as a CSS variable}."""
    return {color: f"c-{color[1:]}" for color in DARK}


def variables(dark: bool) -> str:
    """CSS that gives each colour of the style its value on a light or dark page."""
    return " ".join(f"--{name}: {DARK[color] if dark else color};" for color, name in names_of_colors().items())


def new_panels(width: float, heights: Sequence[float], **shared: Any) -> tuple[Any, list[Any]]:
    """A figure with one panel below the other, of these heights in inches."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(heights), 1, figsize=(width, sum(heights)), squeeze=False,
                                   gridspec_kw={"height_ratios": list(heights)}, **shared)  # fmt: skip
    return figure, list(grid[:, 0])


def label(name: str) -> str:
    """A name as a label: cut where it is very long, without line breaks and invisible characters."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def add_title(figure: Any, title: str) -> None:
    """Write a title above everything, left-aligned and wrapped; the figure becomes as much higher."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(title, int(width * 72 / (0.68 * TITLE_FONT)))
    figure.set_size_inches(width, height + len(lines) * TITLE_FONT * 1.45 / 72)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=TITLE_FONT, fontweight="bold", linespacing=1.25)


def key_above(panel: Any, entries: Sequence[tuple[Any, str]], columns: int, lift: float = 0) -> None:
    """Name the marks in their own colours, in rows above a panel. entries: (artist, name). lift: points."""
    from matplotlib.transforms import ScaledTranslation

    marks, names = zip(*entries)
    place = panel.transAxes + ScaledTranslation(0, lift / 72, panel.figure.dpi_scale_trans)
    legend = panel.legend(marks, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
                          bbox_transform=place, handletextpad=0.4, columnspacing=1.2, borderpad=0)  # fmt: skip
    for text, mark in zip(legend.get_texts(), marks):
        text.set_color(mark.get_color())
