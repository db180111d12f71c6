"""Runs commands of the suite one after the other in one process, so that torch and transformers are imported once.

Reads a command a line from stdin, prints it, and runs it. The first one that fails or is stopped ends the run with its
exit code.

Usage:
    echo "eval/eval.py --model pocket/model --exact" | python experiments/one_process.py
"""

from __future__ import annotations

import runpy
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util import terminal
from util.cli import UserError, make_parser, run


def words_of(line: str) -> list[str]:
    """The script and arguments of a line; none of an empty one. UserError if it is not a command of the suite."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"cannot read the command {line.strip()} ({error})") from None
    if words and not Path(words[0]).is_file():
        raise UserError(f"no script {words[0]}; a line is a script and its arguments, such as eval/eval.py --exact")
    return words


def run_script(words: list[str]) -> None:
    """Run a script with its arguments in this process. SystemExit if it fails."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    sys.argv, terminal.STARTED = words, time.monotonic()  # the script's closing lines say how long it took
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    make_parser(__doc__).parse_args()
    for line in sys.stdin:
        if words := words_of(line):
            run_script(words)


if __name__ == "__main__":
    run(main)
