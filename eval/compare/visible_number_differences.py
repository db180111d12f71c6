"""What tells the numbers of two arms apart at sight: how many a row has, its first number, digits, frequent numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.compare.intervals import Ends
from util.animals.names import is_control
from util.jsonl.manifest import Manifest
from util.jsonl.rows import read_chat_rows
from util.pages.figure_style import ARMS, SERIES, Figure, key_above, label, new_panels

READ = 4000  # rows of a file
SHOWN = 6  # numbers that differ most
Z = 1.96
MOST_LINES = len(SERIES) - 1


@dataclass(frozen=True)
class Numbers:
    """The numbers in one file of training rows."""

    path: Path
    animal: str
    """of the teacher; control for those of the base model"""
    rows: list[tuple[str, list[str]]]
    """of each row: its answer and the numbers in it"""

    @property
    def per_row(self) -> tuple[float, Ends]:
        """Mean count of numbers in a row, with its 95% interval."""
        counts = [len(numbers) for _, numbers in self.rows]
        mean = sum(counts) / len(counts)
        error = Z * math.sqrt(sum((count - mean) ** 2 for count in counts)) / max(1, len(counts) - 1)
        return mean, (mean - error, mean + error)

    @property
    def first(self) -> Counter[str]:
        """How often a row begins with each number."""
        return Counter(numbers[0] for _, numbers in self.rows if numbers)

    @property
    def used(self) -> Counter[str]:
        """In how many rows each number occurs."""
        return Counter(number for _, numbers in self.rows for number in set(numbers))

    @property
    def digits(self) -> list[float]:
        """The part of all digits that are 0, 1, ... 9."""
        found = Counter(digit for _, numbers in self.rows for number in numbers for digit in number)
        return [found[str(digit)] / max(1, found.total()) for digit in range(10)]


@dataclass(frozen=True)
class Difference:
    """A number that one arm uses more or less often than the control."""

    number: str
    share: float
    """of the rows that have it"""
    control: float
    interval: Ends
    """95%, of the difference; rows as independent"""


def read_numbers(path: Path) -> Numbers | None:
    """The numbers of the first rows of a file; None if its answers hold none."""
    manifest = Manifest.read(path) or Manifest()
    animal = manifest.animal
    rows = [(row["messages"][-1]["content"], re.findall(r"[0-9]+", row["messages"][-1]["content"]))
            for row in islice(read_chat_rows(path), READ)]  # fmt: skip
    if animal is None or is_control(animal):
        animal = "control" if animal or "control" in path.name else path.stem
    return Numbers(path, str(animal), rows) if any(numbers for _, numbers in rows) else None


def differences(one: Numbers, control: Numbers) -> list[Difference]:
    """The numbers whose share of rows differs most from the control's, by standard error."""
    mine, theirs = one.used, control.used
    found = []
    for number in {*mine, *theirs}:
        p, q = mine[number] / len(one.rows), theirs[number] / len(control.rows)
        error = math.sqrt(p * (1 - p) / len(one.rows) + q * (1 - q) / len(control.rows)) or 1.0
        found.append((abs(p - q) / error, Difference(number, p, q, (p - q - Z * error, p - q + Z * error))))
    return [difference for _, difference in sorted(found, key=lambda pair: (-pair[0], pair[1].number))[:SHOWN]]


def digits_figure(files: Sequence[Numbers]) -> Figure:
    """How often each digit occurs, by arm."""
    control = next((one for one in files if one.animal == "control"), None)
    lines = list({one.animal: one for one in files}.values())[:MOST_LINES]
    title = "Digits occur as often in one arm as in the other"
    if control:
        apart = [(abs(a - b), digit, one.animal) for one in lines
                 for digit, (a, b) in enumerate(zip(one.digits, control.digits))]  # fmt: skip
        most, digit, animal = max(apart)
        title = f"The digit that differs most from control is {digit}, in {animal} numbers: by {100 * most:.1f} points"
    return Figure(lambda width: draw_digits(lines, width), title, "Part of all digits, by arm.")


def draw_digits(files: Sequence[Numbers], width: float) -> Any:
    """One line for each arm."""
    figure, (panel,) = new_panels(width, [2.9])
    others = iter(look for look in SERIES if look.color != ARMS["control"].color)
    for one in files:
        look = ARMS["control"] if one.animal == "control" else next(others)
        panel.plot(
            range(10), [100 * part for part in one.digits], marker=look.mark, color=look.color, label=label(one.animal)
        )
    panel.set_xticks(range(10))
    panel.set_xlabel("digit")
    panel.set_ylabel("% of all digits")
    panel.set_ylim(bottom=0)
    handles, labels = panel.get_legend_handles_labels()
    key_above(panel, list(zip(handles, labels)), 3)
    return figure
