"""What scripts print: messages, progress, plain tables and the closing lines. Nothing is coloured (NO_COLOR)."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from util.hide_secrets import scrub

PLAIN_PROGRESS_SECONDS = 30.0
FIRST_ESTIMATE_SECONDS = 10.0  # before that, the rate says little about the time left
STARTED = time.monotonic()
# A word for an animal that is not part of a flag, a file name, a place in a template or a quoted key.
_ANIMAL = re.compile(
    r"""(?<![\w./{"'-])(?<!--panel )(?P<a>[Aa]n )?(?P<first>[Aa])nimal(?P<many>s?)(?![\w}/=\"-]|\.\w)"""
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not the tab, not the newline


_called = ("animal", "animals")


def call_animals(one: str, many: str) -> None:
    """Let messages, tables and pages speak of another panel's words: tree, trees."""
    global _called
    _called = (one, many)


def in_words(text: str) -> str:
    """A text about animals, about the words of the panel: 'an animal' becomes 'a tree'."""
    if _called[0] == "animal":
        return text

    def word(found: re.Match[str]) -> str:
        name = _called[1 if found["many"] else 0]
        if found["a"]:
            return f"{found['a'][0]}{'n' if name[0] in 'aeiou' else ''} {name}"
        return name.capitalize() if found["first"] == "A" else name

    return _ANIMAL.sub(word, text)


def say(text: str) -> None:
    """Print a message on stderr, so that stdout holds results only. Secrets in it are hidden."""
    with suppress(OSError):  # a terminal that was closed must not end the run
        print(printable(scrub(in_words(text))), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with its control characters escaped: what a model or a server wrote must not control the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@contextmanager
def regularly(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `action` every so many seconds while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Print what is being done, such as 'loading pocket/model', and every 30 s how long it has taken so far."""
    begun = time.monotonic()
    say(f"{what} ...")
    with regularly(lambda: say(f"{what}: {duration(time.monotonic() - begun)} so far"), PLAIN_PROGRESS_SECONDS):
        yield


class Progress:
    """Rows done, rate and time left: a bar on a terminal, otherwise a plain line at the start and every 30 s.

    A batch whose rows are not done yet counts by the part of its work that is done (`batch_done`).
    """

    def __init__(self, total: int, done: int = 0, unit: str = "rows"):
        self.total, self.unit, self.count, self.new = total, unit, done, 0
        self.started = time.monotonic()
        self.ended: float | None = None
        self.note = ""
        self.in_batch = 0.0
        self.bar: Any = None
        self.ticking: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{percentage:3.0f}%|{bar}| {desc}"
            self.bar = tqdm(total=total or 1, initial=done, bar_format=shape, dynamic_ncols=True)

    def add(self, count: int = 1, note: str = "") -> None:
        """Count `count` more rows. `note` (such as 'kept 93%') is shown beside the rate."""
        self.count += count
        self.new += count
        self.in_batch = max(0.0, self.in_batch - count)
        self.note = note or self.note

    def batch_done(self, part: float, rows: int) -> None:
        """Say how much (0 to 1) of the work for a batch of so many rows is done."""
        self.in_batch = part * rows

    def show(self) -> None:
        """Show where the work is now."""
        if self.bar is None:
            say(self.line())
        else:
            self.bar.n = min(self.bar.total, self.count + self.in_batch)
            self.bar.set_description_str(self.line())

    def line(self) -> str:
        """One plain progress line: '1,200/5,000 rows (24%), 31.2 rows/s, 2 min left'."""
        done = min(self.count, self.total)
        text = f"{done:,}/{self.total:,} {self.unit} ({done / self.total if self.total else 1:.0%})"
        work, left = self.new + self.in_batch, self.total - self.count - self.in_batch
        if left > 0:
            text += f", {self.pace(work, left)}"
        return f"{text}, {self.note}" if self.note else text

    def pace(self, work: float, left: float) -> str:
        """Rate and time left; before there is a rate, how long it has taken so far."""
        if not work or self.seconds < FIRST_ESTIMATE_SECONDS:
            return f"at work for {duration(self.seconds)}"
        rate = work / self.seconds
        shown = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{60 * rate:.1f} {self.unit}/min"
        return f"{shown}, {'about ' if not self.new else ''}{duration(left / rate)} left"

    @property
    def seconds(self) -> float:
        """Seconds since the start; the clock stops at the end."""
        return (self.ended or time.monotonic()) - self.started

    def __enter__(self) -> Progress:
        if self.count < self.total:
            self.show()
        self.ticking = regularly(self.show, PLAIN_PROGRESS_SECONDS if self.bar is None else 0.5)
        self.ticking.__enter__()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.ended = time.monotonic()
        self.ticking.__exit__(None, None, None)
        if self.bar is not None:
            self.show()
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


def table(header: Iterable[str], rows: Iterable[Iterable[object]], texts: bool = False) -> str:
    """A plain text table: first column left-aligned, the others right-aligned. texts: all left-aligned."""
    cells = [[printable(str(cell)) for cell in row] for row in (map(in_words, header), *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 or texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in cells
    ).rstrip()


def closing(facts: Mapping[str, object], next_command: str | None = None) -> None:
    """Print the last lines of a run on stdout: one fact per line, how long it took, then the next command to paste.

    A driver script knows its next command itself: it sets SUITE_DRIVER=1, and only the facts are printed.
    """
    facts = {in_words(name): in_words(str(value)) for name, value in facts.items()}
    took = facts.pop("time", duration(time.monotonic() - STARTED))
    facts["time"] = took  # always the last line
    width = max(map(len, facts))
    for name, value in facts.items():
        print(printable(scrub(f"{name:<{width}}  {value}")))
    if next_command and os.environ.get("SUITE_DRIVER") != "1":
        print(scrub(f"\nnext:\n  {next_command}"))
    sys.stdout.flush()
