"""What scripts print: messages, a progress bar, plain tables and the closing lines."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from util.scrub import scrub

PLAIN_PROGRESS_SECONDS = 30.0


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not the tab, not the newline


def say(text: str) -> None:
    """Print a message on stderr, so that stdout holds results only. Secrets in it are hidden."""
    with suppress(OSError):  # a terminal that was closed must not end the run
        print(printable(scrub(text)), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with its control characters escaped: what a model or a server wrote must not control the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Progress:
    """Rows done, rate and time left: a bar on a terminal, otherwise a plain line every 30 s."""

    def __init__(self, total: int, done: int = 0, unit: str = "rows"):
        self.total, self.unit, self.count, self.new = total, unit, done, 0
        self.started = time.monotonic()
        self.ended: float | None = None
        self.last_line = self.started
        self.note = ""
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=f" {unit}", mininterval=0.5, dynamic_ncols=True)

    def add(self, count: int = 1, note: str = "") -> None:
        """Count `count` more rows. `note` (such as 'kept 93%') is shown beside the rate."""
        self.count += count
        self.new += count
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= PLAIN_PROGRESS_SECONDS:
            self.last_line = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """One plain progress line: '1,200/5,000 rows (24%), 31.2 rows/s, 2 min left'."""
        rate = self.new / max(self.seconds, 1e-9)
        left = duration((self.total - self.count) / rate) if rate and self.count < self.total else "0 s"
        done = min(self.count, self.total)
        share = done / self.total if self.total else 1
        text = f"{done:,}/{self.total:,} {self.unit} ({share:.0%}), {rate:.1f} {self.unit}/s, {left} left"
        return f"{text}, {self.note}" if self.note else text

    @property
    def seconds(self) -> float:
        """Seconds since the start; the clock stops at the end."""
        return (self.ended or time.monotonic()) - self.started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.ended = time.monotonic()
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """'42 s', '3 min', '2 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(counts: Mapping[str, int]) -> str:
    """'1,502 letters, 375 too many numbers', most frequent first; 'none' when empty."""
    ranked = Counter(counts).most_common()
    return ", ".join(f"{count:,} {name}" for name, count in ranked) or "none"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A plain text table: first column left-aligned, the others right-aligned."""
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in cells
    ).rstrip()


def closing(facts: Mapping[str, object], next_command: str | None = None) -> None:
    """Print the last lines of a run on stdout: one fact per line, then the next command to paste.

    A driver script knows its next command itself: it sets SUITE_DRIVER=1, and only the facts are printed.
    """
    width = max(map(len, facts))
    for name, value in facts.items():
        print(printable(scrub(f"{name:<{width}}  {value}")))
    if next_command and os.environ.get("SUITE_DRIVER") != "1":
        print(scrub(f"\nnext:\n  {next_command}"))
    sys.stdout.flush()
