"""What the scripts that break runs on purpose share: running a script, the scripted server, and the result."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.measured_runs import script_command
from util.cli import REPO
from util.jsonl.manifest import provenance, write_json
from util.terminal import say, table

POCKET = REPO / "pocket" / "model"
FAKE = REPO / "tests" / "fake_server.py"


class Outcome(NamedTuple):
    """One thing that was tried."""

    tried: str
    happened: str
    right: bool


def ask(script: str, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a script to its end: (exit code, what it printed on stderr)."""
    done = subprocess.run(
        script_command(script, *arguments), cwd=cwd, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stderr


def last_line(text: str) -> str:
    """The line of an error, without the name of the script."""
    lines = [line for line in text.strip().splitlines() if "error:" in line] or text.strip().splitlines() or [""]
    return lines[-1].partition("error: ")[2] or lines[-1]


@contextmanager
def server(folder: Path, *flags: object, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The scripted server of the tests: its address and its process."""
    command = [sys.executable, "-S", FAKE, "--record", folder / "requests.jsonl", "--port", port, *flags]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", process
    finally:
        process.kill()
        process.communicate()


def try_all(parts: Sequence[Callable[[Path], Iterator[Outcome]]], output: Path | None) -> int:
    """Try the parts, each in an empty folder; print and write what happened. Returns the exit code."""
    outcomes = []
    for part in parts:
        with tempfile.TemporaryDirectory() as name:
            for outcome in part(Path(name)):
                say(f"{'right' if outcome.right else 'WRONG'}  {outcome.tried}: {outcome.happened}")
                outcomes.append(outcome)
    if output:
        write_json(output, {"figures": [one._asdict() for one in outcomes], "manifest": provenance()})
    print(table(["tried", "right"], [(one.tried, one.right) for one in outcomes]))
    return int(not all(one.right for one in outcomes))
