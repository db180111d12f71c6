"""RowFile: a JSONL file that grows row by row, resumes after kills and full disks, and refuses a second writer.

What an earlier run left of `X.jsonl`, and what the next run with it does (`state_on_disk` decides):

    X.jsonl  X.jsonl.partial  manifest                       State       what the next run does
    -------  ---------------  -----------------------------  ----------  ------------------------------------------
    none     none or empty    any                            NEW         starts; deletes old rejects
    one of the two            none, or cannot be read        UNKNOWN     is refused
    one of the two            other settings                 CHANGED     is refused; the differences are listed
    none     rows             same settings                  STARTED     repairs the partial, adds what is missing
    there    any              same settings, state running   UNRECORDED  completes the manifest: the last run was
                                                                         killed after it had put X.jsonl in place
    there    any              same settings, state complete  FINISHED    does nothing, or asks failed rows again
    there    any              an extendable setting grew     EXTENDED    copies X.jsonl to the partial, continues

X.jsonl.rejects does not count: it is a list for the user. With `--overwrite` everything is first moved to `.bak` names,
so that the state is NEW.

While a finished file is extended, X.jsonl and its manifest stay as they are: the partial begins as a copy and has a
manifest of its own (X.jsonl.partial.manifest.json). X.jsonl is replaced when the partial is whole. So a run that is
stopped hides nothing, and the command that wrote X.jsonl still finds it finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

from util.cli import PARTIAL, Parser, UserError, path_text, writable
from util.hide_secrets import scrub_json
from util.jsonl.manifest import Manifest, manifest_path, new_manifest, sha256_file, sync_folder, write_json, write_lines
from util.jsonl.rows import Row, dump_row, parse_row, read_lines, row_problem
from util.terminal import counted, say

FSYNC_SECONDS = 2.0
COUNTS_SECONDS = 30.0
TORN = "torn last line"
MEANING = {"train_jsonl_sha256": " (other rows)",
           "adapter_sha256": " (another adapter, or it was trained again since)",
           "files_sha256": " (other weights, or the model was written again since)"}  # fmt: skip


def add_output_arguments(parser: Parser, name: str, several: bool = False) -> None:
    """--output and --overwrite, the same in every script that writes rows. several: --output gives a list."""
    default = f"(default: {name.replace('%', '%%')})"
    if several:
        parser.add_argument("--output", type=rows_name, nargs="+", metavar="FILE",
                            help=f"file to write; of several adapters: one for each {default}")  # fmt: skip
    else:
        parser.add_argument("--output", type=rows_name, help=f"file to write {default}")
    parser.add_argument("--overwrite", action="store_true", help="start again; keeps the old file as .bak")
    parser.add_check(check_growing)
    if name.startswith("output/"):
        names = re.findall(r"output/(\S+\.jsonl)", re.sub(r"(\{[^}]*\}|\[[^]]*\])+", "*", name))
        parser.default_folder("--output", Path("output"), finished=names)


def rows_name(text: str) -> Path:
    """argparse type of --output: a name that says that the file has JSONL rows, and where they can be written."""
    path = Path(path_text(text))
    if path.suffix != ".jsonl" and (path.is_file() or not path.exists()):
        raise argparse.ArgumentTypeError(f"{text} is not a name that ends in .jsonl, and what is written is JSONL")
    check_output(path)
    if not path.exists():  # the command of a finished output writes nothing
        writable(path.parent)
    return path


def check_growing(args: argparse.Namespace) -> None:
    """UserError if an --output has been started and the rest cannot be added. --overwrite moves it aside."""
    outputs = args.output if isinstance(args.output, list) else [args.output]
    for growing in (partial_path(path) for path in outputs if path and not args.overwrite):
        if growing.exists() and not os.access(growing, os.W_OK):
            raise UserError(
                f"cannot write to {growing}; choose another --output, fix its permissions or pass --overwrite"
            )


def partial_path(path: Path) -> Path:
    """`X.jsonl` -> `X.jsonl.partial`."""
    return path.with_name(path.name + PARTIAL)


def row_or_problem(line: bytes, seen: Collection[int]) -> Row | str:
    """One line of a growing file as a row, or what is wrong with it. `seen`: the ids of the rows before it."""
    try:
        row = parse_row(line.strip())
    except ValueError as error:
        return str(error) if line.endswith(b"\n") else TORN
    return row_problem(row, seen) or row


def check_output(path: Path) -> None:
    """Raise UserError for an --output that is not a file and cannot become one."""
    if not path.name or path.is_dir():
        raise UserError(f"--output {path} is a folder; pass the name of a file in it")
    if path.is_symlink() and not path.exists():
        raise UserError(f"--output {path} is a link to a file that is not there; choose another output")
    if path.exists() and not path.is_file():
        raise UserError(f"--output {path} is a device or a pipe; pass the name of a file")
    if file := next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None):
        raise UserError(f"--output {path}: {file} is a file, not a folder; choose another output")


class State(Enum):
    """What an earlier run left of an output. The table in the docstring of this file says what each one means."""

    NEW = "nothing to continue"
    UNKNOWN = "rows whose settings are not known"
    CHANGED = "rows made with other settings"
    STARTED = "some rows"
    UNRECORDED = "all rows, but the manifest does not say so yet"
    FINISHED = "all rows"
    EXTENDED = "all rows, and now more are wanted"


def state_on_disk(
    path: Path, manifest: Manifest | None, settings: Mapping[str, Any], extendable: Iterable[str] = ()
) -> State:
    """The state of the output `path`, by the files that exist, its manifest and the settings of this run."""
    partial = partial_path(path)
    if not path.exists() and not (partial.exists() and partial.stat().st_size):
        return State.NEW
    if manifest is None:
        return State.UNKNOWN
    before = manifest.settings
    growing = may_grow(before, settings, extendable)
    if describe_differences(before, settings, growing):
        return State.CHANGED
    if not path.exists():
        return State.STARTED
    if any(settings[key] > before[key] for key in growing):
        return State.EXTENDED
    return State.FINISHED if manifest.state == "complete" else State.UNRECORDED


def may_grow(before: Mapping[str, Any], settings: Mapping[str, Any], extendable: Iterable[str]) -> set[str]:
    """Those of the extendable settings (such as epochs) that are now as large as before, or larger."""
    return {key for key in extendable if type(before.get(key)) is int and settings[key] >= before[key]}


class RowFile:
    """One output file that grows row by row and can be resumed.

        with RowFile(path, settings, seed=42) as out:
            if not out.complete:
                for row in make_rows(skip=out.done):
                    out.append([row])
                out.finish()

    settings: everything that changes the rows. A resumed run must have the same settings; otherwise it is refused
        and the error lists those that differ.
    extendable: keys of settings that may grow (such as epochs): a larger value continues a finished file.
    ask_again: whether a row of an earlier run failed and is to be asked again.
    overwrite: move an existing file (or partial) aside to `.bak` and start again.
    inputs: files whose hashes go into the manifest.

    A row with a "rejected" key (its reason) counts as done, but goes to `X.jsonl.rejects` in the end.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        extendable: Iterable[str] = (),
        ask_again: Callable[[Row], bool] | None = None,
        overwrite: bool = False,
        inputs: Sequence[Path] = (),
    ):
        check_output(path)
        if path.resolve() in [file.resolve() for file in inputs]:
            raise UserError(f"--output {path} is the file to be read; choose another name")
        self.path = path
        self.partial = partial_path(path)
        self.rejects = path.with_name(path.name + ".rejects")
        self.settings = json.loads(json.dumps(settings, allow_nan=False))  # as the manifest will read it back
        self.extendable = tuple(extendable)
        self.ask_again = ask_again
        self.overwrite = overwrite
        self.inputs = tuple(inputs)
        self.done: set[int] = set()
        self.complete = False
        self.rejected: Counter[str] = Counter()
        self.kept = 0
        self.counts: dict[str, Any] = {}
        """further facts for the manifest, over all sessions; see `add_counts`"""
        self._described = path  # whose manifest describes the growing rows: the partial's while a file is extended
        self._file: Any = None
        self._lock: Any = None
        self._synced = self._counts_saved = time.monotonic()

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
            self._save_counts()
        self._lock.release()

    def _open(self) -> None:
        if self.overwrite:
            self._move_aside()
        before = Manifest.read(self.path)
        state = state_on_disk(self.path, before, self.settings, self.extendable)
        if state is State.UNKNOWN or state is State.CHANGED:
            raise self._refusal(before)
        if state is State.FINISHED or state is State.UNRECORDED:
            self._recall_finished(state, before)
            if self.complete:
                return
            state = State.EXTENDED
        if state is State.NEW:  # what an older run left beside it does not belong to this run
            before = None
            self.rejects.unlink(missing_ok=True)
        if state is State.EXTENDED:
            before = self._begin_extension() or before
        self.counts = dict(before.counts) if before else {}
        self._write_manifest("running", before)
        if state is State.EXTENDED and not self.partial.exists():
            write_lines(self.partial, (line + b"\n" for _, line in read_lines(self.path)))
        if self.partial.exists():
            self._repair()
        self._file = self.partial.open("ab", buffering=0)
        if self.done:
            say(f"resuming {self.path}: {len(self.done):,} rows are already there")

    def _begin_extension(self) -> Manifest | None:
        """Let the partial have a manifest of its own. Returns the one that an extension before this one left.

        UserError if that one wanted more than this run: its rows would be too many.
        """
        started = Manifest.read(self.partial)
        self._described = self.partial
        if started is None:  # the rest of a run that was killed while it finished X.jsonl
            self.partial.unlink(missing_ok=True)
            return None
        growing = may_grow(started.settings, self.settings, self.extendable)
        if differences := describe_differences(started.settings, self.settings, growing):
            raise UserError(
                f"{self.path} is finished, and a run to extend it was started with other settings:\n{differences}\n"
                f"finish that one first, or delete {self.partial} and its manifest"
            )
        return started

    def _refusal(self, before: Manifest | None) -> UserError:
        """Why the rows on disk cannot be continued with the settings of this run."""
        if before is None:
            return UserError(
                f"{self.path} has no readable manifest, so its settings are unknown; "
                f"move it away or pass --overwrite (keeps a backup)"
            )
        growing = may_grow(before.settings, self.settings, self.extendable)
        state = "is finished" if self.path.exists() else "was started"
        return UserError(
            f"{self.path} {state} with other settings:\n"
            f"{describe_differences(before.settings, self.settings, growing)}\n"
            f"use the same settings, another --output, or --overwrite (keeps a backup)"
        )

    def _move_aside(self) -> None:
        moved = []
        manifests = manifest_path(self.path), manifest_path(self.partial)
        for path in (self.path, self.partial, self.rejects, *manifests):
            if path.exists():
                backup = free_name(path.with_name(path.name + ".bak"))
                path.replace(backup)
                moved.append(str(backup))
        if moved:
            say(f"--overwrite: kept the old files as {', '.join(moved)}")

    def _repair(self) -> None:
        """Read the rows on disk; cut a torn tail, set bad lines aside, drop repeated ids and rows to ask again."""
        good: list[int] = []  # byte offsets
        bad: list[tuple[str, bytes]] = []
        failed, offset, line = 0, 0, b"\n"
        with self.partial.open("rb") as file:
            for line in file:
                found = row_or_problem(line, self.done)
                if isinstance(found, str):
                    bad.append((found, line.strip()))
                elif self.ask_again and self.ask_again(found):
                    failed += 1
                else:
                    good.append(offset)
                    self._count(found)
                offset += len(line)
        if not bad and not failed and line.endswith(b"\n"):
            return
        self._set_aside([(problem, line) for problem, line in bad if line and problem != TORN])
        write_lines(self.partial, (line.strip() + b"\n" for line in _lines_at(self.partial, good)))
        if failed:
            say(f"{self.path}: {failed:,} rows failed; they are asked again")
        if bad or not failed:
            problems = Counter(problem for problem, _ in bad) or {"missing newline at the end": 1}
            say(f"repaired {self.partial}: {counted(problems)}")

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
        """Add whole rows. The operating system has them when this returns, and the disk within seconds."""
        new = [row for row in rows if row["id"] not in self.done]
        if twice := [number for number, count in Counter(row["id"] for row in new).items() if count > 1]:
            raise UserError(f"two rows for {self.path} have the id {twice[0]}; an id identifies one row")
        data = b"".join(map(dump_row, new))
        while data:
            data = data[self._file.write(data) :]
        for row in new:
            self._count(row)
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def add_counts(self, **more: float) -> None:
        """Add to facts of the manifest, such as tokens and seconds. They are sums over all sessions of this output.

        They reach the disk every half minute and at the end of a session: a SIGKILL loses at most the last of them.
        """
        for name, value in more.items():
            self.counts[name] = self.counts.get(name, 0) + value
        if time.monotonic() - self._counts_saved > COUNTS_SECONDS:
            self._save_counts()

    def _save_counts(self) -> None:
        """Put the counts into the manifest of the unfinished file; nothing else in it has changed."""
        self._counts_saved = time.monotonic()
        path = manifest_path(self._described)
        with suppress(OSError):  # on a full disk the rows cannot be written either, and their error is the one to see
            manifest = json.loads(path.read_text("utf-8"))
            if manifest["counts"] != self.counts:
                write_json(path, {**manifest, "counts": self.counts})

    def write_all(self, rows: Iterable[Row]) -> None:
        """Append the rows and finish the file; if it is finished already, say so and leave it as it is."""
        if self.complete:
            say(f"{self.path} is already finished; --overwrite starts again from the beginning")
            return
        self.append(rows)
        self.finish()

    def finish(self, limit: int | None = None, counts: Mapping[str, Any] | None = None) -> Path:
        """Turn the partial into the finished file: id order, rejected rows moved out, at most `limit` rows.

        counts: further facts for the manifest. Returns the finished path. UserError if every row was rejected: a
        file without rows is not an output.
        """
        if self.rejected and self.rejected.total() == len(self.done):
            raise UserError(
                f"every row for {self.path} was rejected: {counted(self.rejected)}; see {self.partial}."
                " --overwrite asks for them again"
            )
        if not self.done:
            raise UserError(f"there is no row for {self.path}: with these options there is nothing to write")
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        places = sorted(self._places())
        kept = [offset for _, offset, rejected in places if not rejected][:limit]
        dropped = [offset for _, offset, rejected in places if rejected]
        if dropped:
            unreadable = [line + b"\n" for _, line in self._reject_lines() if not _has_id(line)]
            write_lines(self.rejects, chain(unreadable, _lines_at(self.partial, dropped)))
        write_lines(self.path, _lines_at(self.partial, kept))
        self.partial.unlink()
        sync_folder(self.path.parent)
        self.complete, self.kept = True, len(kept)
        self.counts.update(counts or {})
        started, self._described = self._described, self.path
        self._write_manifest("complete", Manifest.read(started))
        manifest_path(self.partial).unlink(missing_ok=True)
        return self.path

    def facts(self) -> dict[str, str]:
        """Path, rows and rejects by reason, for the closing lines."""
        facts = {"wrote": str(self.path), "rows": f"{self.kept:,}"}
        return {**facts, "rejected": counted(self.rejected)} if self.rejected else facts

    def _places(self) -> Iterator[tuple[int, int, bool]]:
        """(id, byte offset, rejected) of every row on disk: no more needs to be in memory to sort a big file."""
        offset = 0
        with self.partial.open("rb") as file:
            for line in file:
                row = json.loads(line)
                yield row["id"], offset, "rejected" in row
                offset += len(line)

    def _recall_finished(self, state: State, manifest: Manifest | None) -> None:
        """Count the rows of a finished file, and complete what a run that was killed at its very end left to do. The
        file is not complete if it has rows to ask again."""
        self.complete = True
        self.kept = sum(1 for _ in read_lines(self.path))
        self.rejected = Counter(row["rejected"] for row in self._rejected_rows())
        self.counts = dict(manifest.counts) if manifest else {}
        if state is State.UNRECORDED:
            self.partial.unlink(missing_ok=True)
            self._write_manifest("complete", manifest)
        elif manifest and manifest.sha256 != sha256_file(self.path):
            say(f"warning: {self.path} has changed since this suite wrote it")
        if self._has_failed_rows():
            self.complete, self.kept, self.rejected = False, 0, Counter()

    def _has_failed_rows(self) -> bool:
        """Whether a finished file has rows to ask again."""
        for _, line in read_lines(self.path) if self.ask_again else ():
            with suppress(ValueError):
                if self.ask_again and self.ask_again(parse_row(line)):
                    return True
        return False

    def _rejected_rows(self) -> Iterator[Row]:
        """The rows in the rejects file, without the unreadable lines that a repair set aside."""
        for _, line in self._reject_lines():
            with suppress(ValueError):
                row = parse_row(line)
                if row_problem(row, ()) is None and "rejected" in row:
                    yield row

    def _reject_lines(self) -> Iterator[tuple[int, bytes]]:
        return read_lines(self.rejects) if self.rejects.exists() else iter(())

    def _write_manifest(self, state: str, before: Manifest | None) -> None:
        manifest = new_manifest(
            self.settings,
            state,
            before,
            self.inputs,
            rows={"kept": self.kept, "rejected": dict(self.rejected)},
            sha256=sha256_file(self.path) if state == "complete" else None,
            counts=self.counts,
        )
        write_json(manifest_path(self._described), manifest)


def describe_differences(before: Mapping[str, Any], wanted: Mapping[str, Any], allowed: Iterable[str] = ()) -> str:
    """One indented line for each setting that differs, or ''. Of a setting with several parts, such as the facts of a
    model, the parts that differ are listed. A manifest hides secrets, so they are not compared."""
    before, wanted = scrub_json(before), scrub_json(wanted)
    keys = [key for key in {**before, **wanted} if key not in set(allowed)]
    return "\n".join(
        "  {}: {} there, {} now{}".format(name, *_shown(old, new), MEANING.get(name.rpartition(".")[2], ""))
        for key in keys
        for name, old, new in _parts_that_differ(key, before.get(key), wanted.get(key))
    )


def _parts_that_differ(name: str, before: Any, wanted: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, before, wanted) of what differs; a part of a dict is named as model.adapter_sha256."""
    if isinstance(before, dict) and isinstance(wanted, dict):
        for key in {**before, **wanted}:
            yield from _parts_that_differ(f"{name}.{key}", before.get(key), wanted.get(key))
    elif before != wanted:
        yield name, before, wanted


def lock_output(path: Path) -> Any:
    """Take the lock of an output, so that it has one writer. The kernel frees it however the process ends.

    Raises UserError that names the process that has the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        writer = (Manifest.read(partial_path(path)) or Manifest.read(path) or Manifest()).writer
        if not Path(lock.lock_file).exists():
            raise UserError(f"cannot write in {path.parent}; choose another --output") from None
        who = f"process {writer['pid']} on {writer['host']}" if {"pid", "host"} <= set(writer) else "another process"
        raise UserError(f"{path} is being written by {who}; wait for it or stop it") from None
    except NotImplementedError:
        say(f"warning: {path.parent} does not support locks; make sure that no other process writes {path.name}")
    return lock


def free_name(path: Path) -> Path:
    """`path`, or the first of path2, path3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate


def _shown(before: Any, wanted: Any) -> tuple[str, str]:
    """Two different values as text, each cut to a readable length around the place where they differ."""
    texts = [json.dumps(value, ensure_ascii=False) for value in (before, wanted)]
    same = next((at for at, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    start = max(0, same - 30) if max(map(len, texts)) > 80 else 0
    first, second = (
        ("..." if start else "") + text[start : start + 77] + "..." * (len(text) > start + 77) for text in texts
    )
    return first, second


def _has_id(line: bytes) -> bool:
    """Whether a line of the rejects file is a row; the other lines were set aside by a repair."""
    with suppress(ValueError):
        return "id" in parse_row(line)
    return False


def _lines_at(path: Path, offsets: Iterable[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield file.readline()
