"""Whether a folder holds every package of a lock file, whole; `make setup WHEELS=FOLDER` runs it.

The folder is filled on a machine with network, with the same system and version of Python:

    python -m pip download --require-hashes --no-deps -r requirements.lock -d FOLDER

Usage:
    .venv/bin/python util/checks/wheel_folder.py requirements.lock FOLDER
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, run
from util.jsonl.manifest import sha256_file

SHOWN = 10


class Pin(NamedTuple):
    """A line of a lock file."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]


def pins_of(lock: str) -> Iterator[Pin]:
    """The pins of a lock file's text."""
    for line in lock.replace("\\\n", " ").split("\n"):
        if found := re.match(r"([\w.-]+)(?:\[.*?\])?==(\S+)\s*(?:;(.*?))?(?=\s--hash|$)", line):
            hashes = frozenset(re.findall(r"--hash=sha256:(\w+)", line))
            yield Pin(found[1], found[2], (found[3] or "").strip(), hashes)


def is_wanted(pin: Pin) -> bool:
    """Whether this Python on this system needs the package."""
    from pip._vendor.packaging.markers import Marker

    return not pin.marker or Marker(pin.marker).evaluate()


def missing_pins(pins: list[Pin], folder: Path) -> Iterator[str]:
    """`name==version` of each package that is not there, or is there with other bytes (a download that broke off)."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix == ".whl" or path.name.endswith(".tar.gz")]
    for pin in pins:
        start = re.sub(r"[-_.]+", "_", f"{pin.name}").lower()
        named = [path for path in files if plain(path.name).startswith(f"{start}-{pin.version}")]
        if not named:
            yield f"{pin.name}=={pin.version}"
        elif not any(sha256_file(path) in pin.hashes for path in named):
            yield f"{pin.name}=={pin.version} (damaged: {named[0].name})"


def plain(name: str) -> str:
    """A file name with the package's name as pip compares it: `Jinja2-3.1-py3.whl` -> `jinja2-3.1-py3.whl`."""
    package, dash, rest = name.partition("-")
    return re.sub(r"[-_.]+", "_", package).lower() + dash + rest


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("lock", type=Path, help="lock file with hashes")
    parser.add_argument("folder", type=Path, help="folder of wheels")
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}; WHEELS names the folder of the wheels")
    pins = [pin for pin in pins_of(args.lock.read_text("utf-8")) if is_wanted(pin)]
    missing = list(missing_pins(pins, args.folder))
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise UserError(
            f"{args.folder} has {len(pins) - len(missing)} of {len(pins)} packages of {args.lock}; missing:"
            f" {', '.join(missing[:SHOWN])}{more}. Where there is network: python -m pip download --require-hashes"
            f" --no-deps -r {args.lock} -d FOLDER"
        )


if __name__ == "__main__":
    run(main)
