"""Prints a table in Markdown, row by row."""

from __future__ import annotations

from typing import Any


def row(*cells: Any) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*names: str) -> None:
    """The first two rows."""
    row(*names)
    row(*["---"] * len(names))
