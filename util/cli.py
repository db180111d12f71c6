"""What every script shares: arguments, errors that help, signals, progress and the closing lines."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from util.signals import Interrupted
from util.terminal import printable, say

REPO = Path(__file__).resolve().parents[1]
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

N = TypeVar("N", int, float)
PARTIAL = ".partial"  # the ending of a file that grows


class UserError(Exception):
    """A mistake the user can mend. The text says what is wrong, what was found and what to do."""

    exit_code = 1


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- arguments ---------------------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as it is written, and every default once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.required:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, and which still takes the flags that had another name."""

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=_HelpFormatter, allow_abbrev=False)
        self._renamed: dict[str, str] = {}

    def renamed(self, old: str, new: str) -> None:
        """Take `old` as `new`, and say so. Old flags are not in --help."""
        self._renamed[old] = new

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([self._today(word) for word in given], namespace)

    def _today(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        if flag not in self._renamed:
            return word
        say(f"{flag} is called {self._renamed[flag]} now")
        return self._renamed[flag] + equals + value

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage of twenty flags."""
        self.exit(2, f"{self.prog}: error: {printable(message)}\n{self.prog} --help lists the arguments\n")


def make_parser(doc: str | None) -> Parser:
    """A parser whose help is the script's own docstring."""
    return Parser(doc)


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


# --- progress and closing lines ----------------------------------------------------------------------
