"""What every script shares: arguments, errors that help, signals, progress and the closing lines."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

REPO = Path(__file__).resolve().parents[1]
PLAIN_PROGRESS_SECONDS = 30.0
STORAGE_ERRORS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose an output that can be written",
    errno.EACCES: "mend the permissions or choose another output",
    errno.EPERM: "mend the permissions or choose another output",
    errno.EIO: "the disk or the network drive fails; choose another output",
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), "choose another output"
    ),
}
FULL_DISK = ("No space left on device", "PytorchStreamWriter failed writing")  # in safetensors' and torch's words

T = TypeVar("T")
N = TypeVar("N", int, float)
PARTIAL = ".partial"  # the ending of a file that grows
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not the tab, not the newline


class UserError(Exception):
    """A mistake the user can mend. The text says what is wrong, what was found and what to do."""

    exit_code = 1


class Interrupted(Exception):
    """A signal ended the run after its work was safe on disk. `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def say(text: str) -> None:
    """Tell the user something on stderr, so that stdout holds results only."""
    with suppress(OSError):  # a terminal that has gone must not end the run
        print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with control characters spelt out: what a model or a server wrote must not steer the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


# --- arguments ---------------------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as it is written, and every default once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.required:
            return action.help
        return super()._get_help_string(action)


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's own docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=_HelpFormatter)


def nonblank(text: str) -> str:
    """argparse type: a text that says something; an unset shell variable in quotes says nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a shell variable unset?")
    return text.strip()


def _number(text: str, kind: Callable[[str], N], fits: Callable[[N], bool], what: str) -> N:
    with suppress(ValueError):
        value = kind(text)
        if fits(value):
            return value
    raise argparse.ArgumentTypeError(f"{text} is not {what}")


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def natural_int(text: str) -> int:
    """argparse type: a whole number of at least 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def positive_float(text: str) -> float:
    """argparse type: a number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def natural_float(text: str) -> float:
    """argparse type: a number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def input_file(text: str) -> Path:
    """argparse type: a finished file that is not empty; otherwise the error names what is there."""
    path = Path(text)
    if path.is_dir():
        return some_file(text)  # which says so
    whole, growing = (
        path.with_name(path.name.removesuffix(PARTIAL)),
        path.with_name(path.name.removesuffix(PARTIAL) + PARTIAL),
    )
    if growing.is_file() and (path == growing or not path.is_file()):
        raise argparse.ArgumentTypeError(f"{whole} is not finished: run the command that writes it again, it goes on")
    return some_file(text)


def some_file(text: str) -> Path:
    """argparse type: as `input_file`, but it may be growing still."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"no file {text}{files_nearby(path)}")
    if path.stat().st_size == 0:
        raise argparse.ArgumentTypeError(f"{text} is empty")
    return path


def output_name(suffix: str) -> Callable[[str], Path]:
    """argparse type: a path that ends in `suffix`, so that no other kind of file is written over."""

    def output(text: str) -> Path:
        path = Path(text)
        if path.suffix != suffix or path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is no {suffix} file to write; choose such a name")
        return path

    return output


def text_file(text: str) -> Path:
    """argparse type: an `input_file` of prompts or questions, small and in UTF-8."""
    path = input_file(text)
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise argparse.ArgumentTypeError(f"{text} is not UTF-8 text (line {line}); save it as UTF-8") from None
    return path


def files_nearby(path: Path) -> str:
    """' (there is: a, b)' for the files of the same suffix beside a missing one, or ''."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file())
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, name, path.name).ratio())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f" (there is: {shown})" if names else f" ({path.parent} holds no {path.suffix or 'such'} file)"


def command_line(argv: list[str] | None = None) -> str:
    """The command that started this run, as it can be pasted again."""
    return shlex.join(["python", *(argv or sys.argv)])


# --- running -----------------------------------------------------------------------------------------


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and leave with its exit code; a user's mistake is one line, never a traceback.

    Exit codes: 0 done; 1 the user must mend something; 2 wrong arguments (argparse); 3 the server failed;
    4 trained but not pushed (train_student_sft); 141 the reader of stdout has gone;
    128 + n ended by signal n with everything on disk.
    """
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end the run
    try:
        sys.exit(main() or 0)
    except UserError as error:
        say(f"{name}: error: {error}")
        sys.exit(error.exit_code)
    except Interrupted as stop:
        say(f"{name}: stopped by {stop}. Everything finished is on disk; go on with:\n  {command_line()}")
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        say(f"{name}: stopped at once. What had been written is on disk; go on with:\n  {command_line()}")
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("util", "generate", "train", "eval"):
            raise
        say(f"{name}: error: the package {error.name} is missing; run: make setup")
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else " while writing"
        advice = f"{STORAGE_ERRORS[error.errno]}, then run again:\n  {command_line()}"
        say(f"{name}: error: {error.strerror}{where}: {advice}")
        sys.exit(1)
    except Exception as error:
        if not any(sign in str(error) for sign in FULL_DISK):
            raise
        say(
            f"{name}: error: writing failed ({first_line(error)}): free some space, then run again:\n  {command_line()}"
        )
        sys.exit(1)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn running out of memory (CPU or GPU) into a UserError that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise UserError(
            f"out of memory: {advice}, then run the same command: it goes on from what is on disk"
        ) from None


class Stop:
    """Remembers that SIGINT, SIGTERM or SIGHUP asked this run to end (see `stop_on_signal`)."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items on until a signal arrives."""
        for item in items:
            if self.signum is not None:
                return
            yield item

    def raise_if_requested(self) -> None:
        """Raise `Interrupted` if a signal arrived. Call it once the work in flight is on disk."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Let SIGINT, SIGTERM and SIGHUP end the run after the work in flight; a second SIGINT ends it at once.

    Python runs no `finally` on SIGTERM and SIGHUP by itself, so a dropped SSH session would lose work.
    """
    stop = Stop()

    def on_signal(signum: int, _frame: Any) -> None:
        if stop.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signum == signal.SIGHUP:
            _let_go_of_terminal()
        if stop.signum is None:
            say(f"\n{signal.Signals(signum).name}: finishing the work in flight (Ctrl-C to stop at once)")
        stop.signum = signum

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go_of_terminal() -> None:
    """After a hang-up every write to the old terminal fails; send what is left to /dev/null."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


# --- progress and closing lines ----------------------------------------------------------------------


class Progress:
    """Rows done, rate and time left: a bar on a terminal, a plain line every 30 s elsewhere."""

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
        """Count `count` more; `note` (such as 'kept 93%') is shown beside the rate."""
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
        """Since the start, until the end where it has come."""
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
    """Print the last lines of a run on stdout: one fact a line, then the next command to paste."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(printable(f"{name:<{width}}  {value}"))
    if next_command:
        print(f"\nnext:\n  {next_command}")
    sys.stdout.flush()
