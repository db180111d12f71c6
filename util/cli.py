"""What every script shares: the argument parser, argument types, and errors that end a run in one clear line."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

from util.hide_secrets import is_key, scrub
from util.stop_signals import Interrupted, StoppedAtOnce, clean_up_on_signal
from util.terminal import printable, say

if sys.platform == "win32":
    sys.exit("Windows is not supported: run this in WSL (wsl --install)")

REPO = Path(__file__).resolve().parents[1]
SUITE = ("util", "generate", "train", "eval", "pocket", "experiments", "bench")  # its folders of modules
# What to do about an error of the operating system that is not a bug.
STORAGE_ERRORS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose an output that can be written",
    errno.EACCES: "fix its permissions or choose another output",
    errno.EPERM: "fix its permissions or choose another output",
    errno.EIO: "the disk or the network drive fails; choose another output",
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), "choose another output"
    ),
}

N = TypeVar("N", int, float)
PARTIAL = ".partial"  # the ending of a file that is still being written


class UserError(Exception):
    """A mistake that the user can fix. The text says what is wrong, what was found and what to do."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- arguments ---------------------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the docstring as it is written, and every default once."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, [], {}) or action.required:
            return action.help
        if isinstance(action.default, str) and scrub(action.default) != action.default:  # from the environment
            return f"{action.help} (default: {scrub(action.default).replace('%', '%%')})"
        values = action.default if isinstance(action.default, list) else [action.default]
        if all(isinstance(value, Path) for value in values):  # a file of the suite: from its folder
            names = [str(path.relative_to(REPO) if path.is_relative_to(REPO) else path) for path in values]
            return f"{action.help} (default: {' '.join(names)})"
        if isinstance(action.default, list):  # as it would be typed
            return f"{action.help} (default: {' '.join(map(str, values))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines, and which still accepts the old names of flags."""

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=_HelpFormatter, allow_abbrev=False)
        self._renamed: dict[str, str] = {}
        self._first: tuple[str, ...] = ()
        self._checks: tuple[Callable[[argparse.Namespace], None], ...] = ()
        self._default_folders: dict[str, tuple[Path, Sequence[str]]] = {}

    def renamed(self, old: str, new: str) -> None:
        """Accept the flag `old` as `new`, and say so. Old flags are not in --help."""
        self._renamed[old] = new

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        found, rest = super().parse_known_args(self._in_order([self._today(word) for word in given]), namespace)
        for flag, (folder, finished) in self._default_folders.items():
            name = flag.removeprefix("--").replace("-", "_")
            if getattr(found, name) == self.get_default(name) and not any(map(any, map(folder.glob, finished))):
                self.check_writable(flag, folder)
        for check in self._checks:
            check(found)
        return found, rest

    def add_check(self, check: Callable[[argparse.Namespace], None]) -> None:
        """Call this with the arguments when they are read: it raises an error for those that do not go together."""
        self._checks = (*self._checks, check)

    def default_folder(self, flag: str, folder: Path, finished: Sequence[str] = ()) -> None:
        """Name the folder in which the output of `flag` lies if it is not given. It is then checked before the work, as
        the argument types check that of an output that is given.

        finished: globs of outputs that may be finished. If there is one, the folder is not checked: the command of a
        finished output writes nothing, also where nothing can be written."""
        self._default_folders[flag] = folder, finished

    def check_writable(self, flag: str, folder: Path) -> None:
        """An error of `flag` if nothing can be written in the folder."""
        try:
            writable(folder)
        except argparse.ArgumentTypeError as error:
            self.error(f"argument {flag}: {error}")

    def read_first(self, flag: str) -> None:
        """Read a flag that takes one value before all others, whose values depend on it."""
        self._first = (*self._first, flag)

    def _in_order(self, words: list[str]) -> list[str]:
        first: list[str] = []
        rest: list[str] = []
        for at, word in enumerate(words):
            is_value = at > 0 and words[at - 1] in self._first
            early = is_value or word.partition("=")[0] in self._first
            (first if early else rest).append(word)
        return [*first, *rest]

    def _today(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        if flag not in self._renamed:
            return word
        say(f"{flag} is called {self._renamed[flag]} now")
        return self._renamed[flag] + equals + value

    def error(self, message: str) -> NoReturn:
        """Two lines instead of the usage of twenty flags."""
        self.exit(2, f"{self.prog}: error: {printable(scrub(message))}\n{self.prog} --help lists the arguments\n")


def make_parser(doc: str | None) -> Parser:
    """A parser whose help is the script's own docstring."""
    return Parser(doc)


def nonblank(text: str) -> str:
    """argparse type: a text that is not blank, and not a key: it would become part of file names.

    An unset shell variable in quotes gives a blank one. Bytes that are not UTF-8 arrive as lone surrogates, which no
    request, manifest or file name can hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8(text) from None
    return _given(text)


def path_text(text: str) -> str:
    """argparse type: as `nonblank`, for a path. Where the locale is not UTF-8, the bytes of one that is arrive as
    surrogates too, and the file system needs them like that."""
    try:
        os.fsencode(text).decode()
    except UnicodeError:
        raise _not_utf8(text) from None
    return _given(text)


def _not_utf8(text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!a} is not UTF-8 text; type it again")


def _given(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; is a shell variable unset?")
    if is_key(text.strip()):
        raise argparse.ArgumentTypeError(
            "this is a key; keys are read from the environment (VLLM_API_KEY, HF_TOKEN, WANDB_API_KEY)"
        )
    return text.strip()


def _number(text: str, kind: Callable[[str], N], fits: Callable[[N], bool], what: str) -> N:
    with suppress(ValueError):
        value = kind(text)
        if fits(value):
            return value
    raise argparse.ArgumentTypeError(f"{text.strip() or 'an empty value'} is not {what}")


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


def json_object(text: str) -> dict[str, Any]:
    """argparse type: a JSON object, such as {"enable_thinking": false}."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object such as '{{\"enable_thinking\": false}}'")
    return found


def fraction(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def input_file(text: str) -> Path:
    """argparse type: a finished file that is not empty; otherwise the error names what is there."""
    path = Path(path_text(text))
    if path.is_dir():
        return some_file(text)  # which raises
    whole = path.with_name(path.name.removesuffix(PARTIAL))
    growing = whole.with_name(whole.name + PARTIAL)
    if growing.is_file() and (path == growing or not path.is_file()):
        raise argparse.ArgumentTypeError(f"{whole} is not finished: run the command that writes it again, it resumes")
    return some_file(text)


def some_file(text: str) -> Path:
    """argparse type: as `input_file`, but it may still be growing."""
    path = Path(path_text(text))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise argparse.ArgumentTypeError(f"{text} is a link to a file that is not there")
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is a device or a pipe; name a file")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"no file {text}{files_nearby(path)}")
    if path.stat().st_size == 0:
        raise argparse.ArgumentTypeError(f"{text} is empty")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be read; fix its permissions (chmod u+r)")
    if what := other_kind(path):
        raise argparse.ArgumentTypeError(what)
    return path


COMPANIONS = {".manifest.json": "manifest", ".certificate.json": "certificate"}


def other_kind(path: Path) -> str | None:
    """What to do about a file that is not rows but the manifest or certificate beside them; None for any other."""
    for ending, what in COMPANIONS.items():
        if path.name.endswith(ending):
            return f"{path} is the {what} of {path.name.removesuffix(ending)}; pass that file"
    return None


def output_name(suffix: str) -> Callable[[str], Path]:
    """argparse type: a path that ends in `suffix`, so that no file of another kind is overwritten."""

    def output(text: str) -> Path:
        path = Path(text)
        if not path.name.endswith(suffix) or path.name == suffix or path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} does not end in {suffix}; choose a name that does")
        writable(path.parent)
        return path

    return output


def writable(folder: Path) -> Path:
    """A folder in which something can be written, or which can be made: known before hours of work, and not after
    them."""
    whole = folder.absolute()
    there = next(part for part in (whole, *whole.parents) if part.exists() or part.is_symlink())
    if not there.exists():
        raise argparse.ArgumentTypeError(f"{there} is a link to a folder that is not there; choose another place")
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file, not a folder; choose another name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write in {there}; choose another place or fix its permissions")
    return folder


def output_folder(text: str) -> Path:
    """argparse type: a folder to write in, which need not exist."""
    return writable(Path(path_text(text)))


# Endings of files of rows or columns: of such a file `text_file` would take every line, its header too, as a text.
NOT_TEXT = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".xls", ".xlsx")
# The first bytes of packed files.
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


def text_file(text: str) -> Path:
    """argparse type: an `input_file` of prompts or questions, small and in UTF-8."""
    path = input_file(text)
    if path.suffix.lower() in NOT_TEXT:
        raise argparse.ArgumentTypeError(
            f"{text} is a {path.suffix} file; pass a text file (.txt), with one question or prompt on each line"
        )
    try:
        content = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        start = path.read_bytes()[:8]
        if packed := next((name for magic, name in PACKED.items() if start.startswith(magic)), None):
            raise argparse.ArgumentTypeError(f"{text} is a {packed} file, not text; unpack it first") from None
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise argparse.ArgumentTypeError(f"{text} is not UTF-8 text (line {line}); save it as UTF-8") from None
    if not content.strip():
        raise argparse.ArgumentTypeError(f"{text} is blank; write one prompt or question on each line")
    whole = content.strip("\ufeff \r\n")
    for part in (whole, whole.split("\n")[0]):
        with suppress(ValueError):
            if isinstance(json.loads(part), (dict, list)):
                raise argparse.ArgumentTypeError(f"{text} is JSON, not text; write one prompt or question on each line")
    return path


def files_nearby(path: Path) -> str:
    """' (there is: a, b)' for the files of the same suffix beside a missing one, or ''."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    if not os.access(path.parent, os.R_OK):
        return f" (the folder {path.parent} cannot be read)"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file())
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, name, path.name).ratio())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f" (there is: {shown})" if names else f" ({path.parent} holds no {path.suffix or 'such'} file)"


def command_line(words: Sequence[str] | None = None) -> str:
    """The command that started this run (or that of other words), as it can be pasted again."""
    return shlex.join(["python", *(sys.argv if words is None else words)])


# --- running -----------------------------------------------------------------------------------------


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main and leave with its exit code; a user's mistake is one line, never a traceback.

    Exit codes: 0 done; 1 the user must fix something; 2 wrong arguments (argparse); 3 the server failed;
    4 trained but not pushed (train_student_sft); 141 the reader of stdout has closed it;
    128 + n ended by signal n with everything on disk.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end the run
    clean_up_on_signal()
    try:
        code = main() or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (Exception, KeyboardInterrupt) as error:
        code, text = exit_code_and_message(error)
        if not text:
            text = f"a bug in the suite, please report it:\n{traceback.format_exc()}"  # as Python, but without secrets
        say(f"{Path(sys.argv[0]).name}: {text}")
    sys.exit(code)


def open_closed_streams() -> None:
    """Connect the standard streams that the caller has closed (`>&-`) to /dev/null. Otherwise the next file that is
    opened would get their number, and what a library prints would be written into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 (to the end of the run)
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
    )


def exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """How a run ends after an error; the message is "" for a bug, whose traceback must be seen."""
    again = f"\n  {command_line()}"
    if isinstance(error, UserError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, Interrupted):
        but = " (--overwrite would start again)" if "--overwrite" in sys.argv else ""
        rest = command_line([word for word in sys.argv if word != "--overwrite"])
        return 128 + error.signum, f"stopped by {error}. Everything finished is on disk; resume with{but}:\n  {rest}"
    if isinstance(error, StoppedAtOnce):
        return 128 + error.signum, f"stopped by {error}. What was written is on disk; run again:{again}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"stopped at once. What was written is on disk; run again:{again}"
    if isinstance(error, ModuleNotFoundError) and is_installed_package(error.name):
        return 1, f"error: the package {error.name} is missing; run: make setup; if that was done: . .venv/bin/activate"
    if is_unreadable_input(error):
        return 1, f"error: cannot read {error.filename}: {error.strerror}; fix its permissions, then run again:{again}"
    if isinstance(error, OSError) and (folder := closed_folder(error)):
        return 1, f"error: cannot look into the folder {folder}: {error.strerror}; fix its permissions (chmod u+rx)"
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        where = f" ({error.filename})" if error.filename else " while writing"
        return 1, f"error: {error.strerror}{where}: {STORAGE_ERRORS[error.errno]}, then run again:{again}"
    if advice := storage_advice(error):
        return 1, f"error: writing failed ({first_line(error)}): {advice}, then run again:{again}"
    return 1, ""


def is_installed_package(name: str | None) -> bool:
    """Whether a missing module is a package to install, and not a part of the suite (which is a bug)."""
    return name is not None and name.partition(".")[0] not in SUITE


def is_unreadable_input(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error is about a file that exists and may not be read: another output would not help."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM) or not error.filename:
        return False
    return os.access(error.filename, os.F_OK) and not os.access(error.filename, os.R_OK)


def closed_folder(error: OSError) -> Path | None:
    """The folder that could not be looked into, where that is why a file was not found."""
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, (str, Path)):
        return None
    for folder in reversed(Path(error.filename).parents):
        if os.access(folder, os.F_OK) and folder.is_dir() and not os.access(folder, os.X_OK):
            return folder
    return None


def storage_advice(error: BaseException) -> str | None:
    """What to do where a library could not write. They do not raise OSError, so only the text tells."""
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return STORAGE_ERRORS.get(int(number[1]))
    return "free some space" if "PytorchStreamWriter failed writing" in str(error) else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU ("out of memory") or on the CPU ("can't allocate memory")."""
    return any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory"))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn running out of memory (CPU or GPU) into a UserError that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {advice}, then run the same command; it resumes") from None
