"""The table of a chi-square test: whether two lots of answers can be from one distribution."""

from __future__ import annotations

from collections import Counter

FEWEST = 10  # texts with fewer answers, in both lots together, share one cell of the table


def contingency(one: Counter[str], other: Counter[str]) -> list[list[int]]:
    """The counts of two lots of answers: a row for each lot, a column for each text. Rare texts share a column."""
    both = one + other
    cells = [[lot[text] for text in both if both[text] >= FEWEST] for lot in (one, other)]
    rest = [sum(lot[text] for text in both if both[text] < FEWEST) for lot in (one, other)]
    return [[*cell, left] if sum(rest) else cell for cell, left in zip(cells, rest)]
