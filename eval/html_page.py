"""Fill an HTML template of eval/templates/. Everything is escaped, apart from our own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from util.jsonl.manifest import now

TEMPLATES = Path(__file__).with_name("templates")


def render_page(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page as text. filters: {name in the template: function}. The template also gets `when`, the current time."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(autoescape=True, loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined)
    environment.filters.update(filters)
    return environment.get_template(template).render(when=now(), **values)


def inline_svg(figure: Mapping[str, bytes]) -> Any:
    """The SVG element of a figure (eval/save_figures.py), marked as not to be escaped."""
    from markupsafe import Markup

    text = figure["svg"].decode()
    return Markup(text[text.index("<svg") :])
