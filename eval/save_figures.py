"""Save Matplotlib figures as SVG (for a page) and PNG (for a file), without a screen."""

from __future__ import annotations

import io
from typing import Any

PANELS_A_ROW = 4


def pyplot_without_screen() -> Any:
    """matplotlib's pyplot, set up to draw into files; text in an SVG stays text."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    return pyplot


def panels_of(count: int, width: float, height: float, **shared: bool) -> tuple[Any, list[Any]]:
    """A figure with `count` panels of width x height inches each, `PANELS_A_ROW` in a row."""
    columns = min(count, PANELS_A_ROW)
    rows = -(-count // columns)
    figure, grid = pyplot_without_screen().subplots(
        rows, columns, figsize=(width * columns + 1.6, height * rows), squeeze=False, **shared
    )
    for empty in grid.flat[count:]:
        empty.set_visible(False)
    return figure, list(grid.flat[:count])


def written(figure: Any, name: str) -> dict[str, bytes]:
    """The figure as {"svg": ..., "png": ...}; it is closed. Names make SVG ids unique in a page."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    figure.tight_layout()
    files = {}
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = buffer.getvalue()
    pyplot_without_screen().close(figure)
    return files
