"""A JSONL file that grows row by row and survives kills, full disks and second writers."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from util.cli import PARTIAL, UserError
from util.jsonl.manifest import (
    manifest_path,
    new_manifest,
    read_manifest,
    sha256_file,
    sync_folder,
    write_json,
)
from util.jsonl.rows import Row, dump_row, parse_row, read_lines, row_problem
from util.terminal import counted, say

FSYNC_SECONDS = 2.0


def add_output_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """--output and --overwrite, the same in every script that writes rows."""
    parser.add_argument("--output", type=Path, help=f"file to write (default: {name.replace('%', '%%')})")
    parser.add_argument("--overwrite", action="store_true", help="start afresh; keeps the old file as .bak")


def check_output(path: Path) -> None:
    """Raise UserError for an --output that is no file and cannot become one."""
    if not path.name or path.is_dir():
        raise UserError(f"--output {path} is a folder; pass the name of a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"--output {path} is a device or a pipe; pass the name of a file")


class RowFile:
    """One output file that grows row by row and survives kills, full disks and second writers.

        with RowFile(path, settings, seed=42) as out:
            if not out.complete:
                for row in make_rows(skip=out.done):
                    out.append([row])
                out.finish()

    settings: everything that changes the rows. A resumed run must have the same, or it is refused with the
        differing keys named.
    extendable: keys of settings that may grow (such as epochs): a larger value reopens a finished file.
    overwrite: move an existing file (or partial) aside to `.bak` and start afresh.
    inputs: files whose hashes go into the manifest.

    A row with a "rejected" key (its reason) counts as done, but goes to `X.jsonl.rejects` in the end.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        extendable: Iterable[str] = (),
        overwrite: bool = False,
        inputs: Sequence[Path] = (),
    ):
        check_output(path)
        if path.resolve() in [file.resolve() for file in inputs]:
            raise UserError(f"--output {path} is the file to be read; choose another name")
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self.rejects = path.with_name(path.name + ".rejects")
        self.settings = json.loads(json.dumps(settings, allow_nan=False))  # as the manifest will read it back
        self.extendable = tuple(extendable)
        self.overwrite = overwrite
        self.inputs = tuple(inputs)
        self.done: set[int] = set()
        self.complete = False
        self.rejected: Counter[str] = Counter()
        self.kept = 0
        self._file: Any = None
        self._lock: Any = None
        self._synced = time.monotonic()

    def __enter__(self) -> RowFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_output(self.path)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.release()

    def _open(self) -> None:
        if self.overwrite:
            self._move_aside()
        manifest = read_manifest(self.path)
        if self.path.exists() or (self.partial.exists() and self.partial.stat().st_size):
            self._check_settings(manifest)
        else:  # nothing to go on from: what an older run left beside it is not this run's
            manifest = None
            self.rejects.unlink(missing_ok=True)
        if self.path.exists() and manifest and not self._grows(manifest):
            self._recall_finished(manifest)
            return
        if self.path.exists():
            self.path.replace(self.partial)
        self._write_manifest("running", manifest)
        if self.partial.exists():
            self._repair()
        self._file = self.partial.open("ab", buffering=0)
        if self.done:
            say(f"resuming {self.path}: {len(self.done):,} rows are already there")

    def _check_settings(self, manifest: Mapping[str, Any] | None) -> None:
        if manifest is None or not isinstance(manifest.get("settings"), dict):
            raise UserError(
                f"{self.path} has no readable manifest, so its settings are unknown; "
                f"move it away or pass --overwrite (keeps a backup)"
            )
        differing = describe_differences(manifest["settings"], self.settings, self._allowed_growth(manifest))
        if differing:
            state = "is finished" if self.path.exists() else "was begun"
            raise UserError(
                f"{self.path} {state} with other settings:\n{differing}\n"
                f"use the same settings, another --output, or --overwrite (keeps a backup)"
            )

    def _allowed_growth(self, manifest: Mapping[str, Any]) -> set[str]:
        before = manifest["settings"]
        return {key for key in self.extendable if type(before.get(key)) is int and self.settings[key] >= before[key]}

    def _grows(self, manifest: Mapping[str, Any]) -> bool:
        return any(self.settings[key] > manifest["settings"][key] for key in self._allowed_growth(manifest))

    def _move_aside(self) -> None:
        moved = []
        for path in (self.path, self.partial, self.rejects, manifest_path(self.path)):
            if path.exists():
                backup = free_name(path.with_name(path.name + ".bak"))
                path.replace(backup)
                moved.append(str(backup))
        if moved:
            say(f"--overwrite: kept what was there as {', '.join(moved)}")

    def _repair(self) -> None:
        """Read the rows on disk; cut a torn tail, set bad lines aside, drop repeated ids."""
        bad: list[tuple[str, bytes]] = []
        with self.partial.open("rb") as file:
            for line in file:
                try:
                    row = parse_row(line.strip())
                    problem = row_problem(row, self.done)
                except ValueError as error:
                    problem = str(error) if line.endswith(b"\n") else "torn last line"
                if problem is None:
                    self._count(row)
                else:
                    bad.append((problem, line.strip()))
        if not bad and _ends_with_newline(self.partial):
            return
        self._set_aside([(problem, line) for problem, line in bad if line and problem != "torn last line"])
        _write_lines(self.partial, self._good_lines())
        found = Counter(problem for problem, _ in bad) or {"missing newline at the end": 1}
        say(f"repaired {self.partial}: {counted(found)}")

    def _good_lines(self) -> Iterator[bytes]:
        seen: set[int] = set()
        for _, line in read_lines(self.partial):
            try:
                row = parse_row(line)
            except ValueError:
                continue
            if row_problem(row, seen) is None:
                seen.add(row["id"])
                yield dump_row(row)

    def _set_aside(self, bad: Iterable[tuple[str, bytes]]) -> None:
        lines = [dump_row({"rejected": why, "line": line.decode("utf-8", "replace")}) for why, line in bad]
        if lines:
            with self.rejects.open("ab") as file:
                file.write(b"".join(lines))

    def _count(self, row: Row) -> None:
        self.done.add(row["id"])
        if "rejected" in row:
            self.rejected[row["rejected"]] += 1
        else:
            self.kept += 1

    def append(self, rows: Iterable[Row]) -> None:
        """Add whole rows. They are with the operating system when this returns, and on disk within seconds."""
        new = [row for row in rows if row["id"] not in self.done]
        data = b"".join(map(dump_row, new))
        while data:
            data = data[self._file.write(data) :]
        for row in new:
            self._count(row)
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self, limit: int | None = None, counts: Mapping[str, Any] | None = None) -> Path:
        """Turn the partial into the finished file: id order, rejected rows moved out, at most `limit` rows.

        counts: further facts for the manifest. Returns the finished path. UserError where every row was rejected: a
        file without rows is no output.
        """
        if self.rejected and self.rejected.total() == len(self.done):
            raise UserError(
                f"every row for {self.path} was rejected: {counted(self.rejected)}; see {self.partial}. --overwrite"
                " asks for them anew"
            )
        if not self.done:
            raise UserError(f"no row came for {self.path}: with these options there is nothing to write")
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        places = sorted(self._places())
        kept = [offset for _, offset, rejected in places if not rejected][:limit]
        dropped = [offset for _, offset, rejected in places if rejected]
        if dropped:
            unreadable = [line + b"\n" for _, line in self._reject_lines() if b'"id"' not in line]
            _write_lines(self.rejects, chain(unreadable, _lines_at(self.partial, dropped)))
        _write_lines(self.path, _lines_at(self.partial, kept))
        self.partial.unlink()
        sync_folder(self.path.parent)
        self.complete, self.kept = True, len(kept)
        self._write_manifest("complete", read_manifest(self.path), counts)
        return self.path

    def facts(self) -> dict[str, str]:
        """Path, rows and rejects by reason, for the closing lines."""
        facts = {"wrote": str(self.path), "rows": f"{self.kept:,}"}
        return {**facts, "rejected": counted(self.rejected)} if self.rejected else facts

    def _places(self) -> Iterator[tuple[int, int, bool]]:
        """(id, byte offset, rejected) of every row on disk: all that has to be in memory to sort a big file."""
        offset = 0
        with self.partial.open("rb") as file:
            for line in file:
                row = json.loads(line)
                yield row["id"], offset, "rejected" in row
                offset += len(line)

    def _recall_finished(self, manifest: Mapping[str, Any]) -> None:
        """Count a finished file; tidy up after a run that died between its rename and its last manifest."""
        self.complete = True
        self.kept = sum(1 for _ in read_lines(self.path))
        self.rejected = Counter(row["rejected"] for row in self._rejected_rows())
        self.partial.unlink(missing_ok=True)
        if manifest.get("state") != "complete":
            self._write_manifest("complete", manifest)
        elif manifest.get("sha256") != sha256_file(self.path):
            say(f"warning: {self.path} is not as this suite wrote it: it has changed since")

    def _rejected_rows(self) -> Iterator[Row]:
        """The rows in the rejects file; unreadable lines that a repair set aside are no rows."""
        for _, line in self._reject_lines():
            with suppress(ValueError):
                row = parse_row(line)
                if row_problem(row, ()) is None and "rejected" in row:
                    yield row

    def _reject_lines(self) -> Iterator[tuple[int, bytes]]:
        return read_lines(self.rejects) if self.rejects.exists() else iter(())

    def _write_manifest(
        self, state: str, before: Mapping[str, Any] | None, counts: Mapping[str, Any] | None = None
    ) -> None:
        manifest = new_manifest(
            self.settings,
            state,
            before,
            self.inputs,
            rows={"kept": self.kept, "rejected": dict(self.rejected)},
            sha256=sha256_file(self.path) if state == "complete" else None,
            counts=dict(counts or {}),
        )
        write_json(manifest_path(self.path), manifest)


def describe_differences(before: Mapping[str, Any], wanted: Mapping[str, Any], allowed: Iterable[str] = ()) -> str:
    """One indented line for each setting that differs, or ''."""
    keys = [key for key in {**before, **wanted} if key not in set(allowed)]
    return "\n".join(
        "  {}: {} there, {} now".format(key, *_shown(before.get(key), wanted.get(key)))
        for key in keys
        if before.get(key) != wanted.get(key)
    )


def lock_output(path: Path) -> Any:
    """Take the one writer's lock of an output; UserError names who holds it. Freed by the kernel on any death."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        writer = (read_manifest(path) or {}).get("writer", {})
        if not Path(lock.lock_file).exists():
            raise UserError(f"cannot write in {path.parent}; choose another --output") from None
        who = f"process {writer.get('pid', '?')} on {writer.get('host', '?')}"
        raise UserError(f"{path} is being written by {who}; wait for it or stop it") from None
    except NotImplementedError:
        say(f"warning: {path.parent} does not support locks; make sure that nothing else writes {path.name}")
    return lock


def free_name(path: Path) -> Path:
    """`path`, or the first of path2, path3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate


def _shown(before: Any, wanted: Any) -> tuple[str, str]:
    """Two values that differ, each cut to what can be read, and not before they differ."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (before, wanted)]
    same = next((at for at, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    start = max(0, same - 30) if max(map(len, texts)) > 80 else 0
    first, second = (
        ("..." if start else "") + text[start : start + 77] + "..." * (len(text) > start + 77) for text in texts
    )
    return first, second


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines to a temporary file beside `path`, fsync, and put it in place."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lines_at(path: Path, offsets: Iterable[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield file.readline()
