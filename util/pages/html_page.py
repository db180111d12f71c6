"""Fill an HTML template. Everything is escaped, apart from our own figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from util.jsonl.manifest import now
from util.pages.figure_style import NARROW, WIDE, Figure, variables
from util.terminal import in_words

TEMPLATES = Path(__file__).with_name("templates")
_CODE = re.compile(r"(\{[{%#].*?[}%#]\})", re.DOTALL)  # what Jinja reads


class ShownFigure(NamedTuple):
    """A figure as a template shows it: two drawings, of which the style sheet shows the one that fits the screen."""

    title: str
    caption: str
    narrow: Any
    wide: Any


def shown(figure: Figure) -> ShownFigure:
    """The figure for a template, its drawings marked as not to be escaped, with a text for those who cannot see it."""
    from markupsafe import Markup, escape

    label = escape(f"{figure.title}. {figure.caption}")
    drawings = [figure.svg(width).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
                for width in (NARROW, WIDE)]  # fmt: skip
    return ShownFigure(figure.title, figure.caption, *map(Markup, drawings))


def render_page(template: Path, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page as text. filters: {name in the template: function}. The template also gets `when`, the current time, and
    may use the templates beside this module."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(name: str) -> str:
        """A template's text in the panel's words; what is computed in it stays."""
        path = next(folder / name for folder in (template.parent, TEMPLATES) if (folder / name).is_file())
        parts = _CODE.split(path.read_text("utf-8"))
        return "".join(part if is_code else in_words(part) for part, is_code in zip(parts, cycle((False, True))))

    environment = Environment(autoescape=True, loader=FunctionLoader(source), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters.update(filters)
    colors = {"light": variables(dark=False), "dark": variables(dark=True)}
    return environment.get_template(template.name).render(when=now(), colors=colors, **values)


def visible(text: str) -> str:
    """The text with every invisible character as an escape: a newline as \\n, U+202E as \\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
