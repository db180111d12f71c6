"""Filter a whole file of rows: write the kept ones with a manifest and a certificate, and print the next command."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from generate.rows.next_training_flags import template_flags, train_flags
from generate.rows.push_dataset import push_dataset
from generate.rows.row_audit import RowAudit, audit
from generate.rows.row_filter import RowFilter, Rule
from generate.rows.token_check import TokenCheck, token_check_of
from util.animals.names import is_control
from util.animals.panel import panel_flag
from util.cli import REPO, UserError
from util.jsonl.filter_certificate import FILTERED_NAME, certificate_path
from util.jsonl.manifest import (
    Manifest,
    manifest_path,
    named,
    new_manifest,
    now,
    sha256_file,
    sync_folder,
    write_json,
)
from util.jsonl.resumable import check_output, free_name
from util.jsonl.rows import check_messages, dump_row, read_chat_rows, read_lines_and_rows
from util.terminal import closing, counted, say

PLAN_MODEL = "Qwen/Qwen2.5-7B-Instruct"  # the base model of the printed command, for rows that no model wrote


class Filtered(NamedTuple):
    """The result of filtering a file."""

    path: Path
    kept: int
    rejected: Counter[str]
    """dropped rows, by reason"""
    keys_left_out: Counter[str]
    """rows whose messages had a key beside role and content, by that key"""
    certificate: dict[str, Any]


def filter_file(source: Path, rule: Rule, output: Path | None = None) -> Filtered:
    """Write the rows of `source` that pass the filter, their manifest and their certificate; and beside them, as
    X.jsonl.rejects, the rows that do not pass, each with its reason.

    output: the file to write; `{kept}` in its name becomes the count (default: `default_output(source)`).
    Memory: two 8-byte hashes for each kept row, whatever its length.
    Raises UserError for a row that is not a chat row, and if no row passes.
    """
    output = output or default_output(source)
    check_output(output)
    if output.resolve() == source.resolve():
        raise UserError(f"--output {output} is the file to read; choose another name")
    started = now()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    rejects = temporary.with_suffix(".rejects")
    try:
        rejected, left_out, findings = _copy_kept_rows(source, temporary, rejects, rule)
        kept = findings["rows"]
        if kept == 0:
            raise UserError(f"no row of {source} passes the {rule.name} rule: {counted(rejected)}. {rule.hint}")
        path = output.with_name(output.name.replace("{kept}", str(kept)))
        digest = sha256_file(temporary)
        manifest = _manifest(source, rule, started, kept, rejected, digest)
        read = {
            "file": source.name,
            "sha256": manifest["inputs"][named(source)],
            "rows": kept + rejected.total(),
            "rejected": dict(rejected),
            "message_keys_left_out": dict(left_out),
        }
        certificate = {"file": path.name, "sha256": digest, "input": read, **findings}
        _move_older_aside(output, path, digest, source)
        write_json(manifest_path(path), manifest)
        write_json(certificate_path(path), certificate)
        if rejected:
            rejects.replace(path.with_name(path.name + ".rejects"))
        temporary.replace(path)  # last, so that a filtered file always has its certificate
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        rejects.unlink(missing_ok=True)
    if not certificate["clean"]:
        say(f"warning: {path} is not clean: {counted(certificate['problems'])}")
    return Filtered(path, kept, rejected, left_out, certificate)


def _copy_kept_rows(
    source: Path, target: Path, rejects: Path, rule: Rule
) -> tuple[Counter[str], Counter[str], dict[str, Any]]:
    """Write the rows that pass to `target` and the others to `rejects`.

    Returns (dropped rows by reason, rows by the keys of their messages that were left out, what the audit found in the
    kept rows).

    A line is copied as it is: writing the JSON again would take as long as everything else together, and would change
    the spacing of another tool's file. Only a line with raw Unicode, or with more in its messages than role and text,
    is written again, in ASCII.

    Filter, copy and audit share one pass: the file may be larger than memory, and reading it takes most of the time.
    """
    rejected: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    tokens = token_check_of(source)
    row_filter, row_audit = RowFilter(rule, tokens), RowAudit(rule, TokenCheck(tokens.tokenizer, tokens.name))
    with target.open("wb") as file, rejects.open("wb") as others:
        for line, row, is_as_read, keys in read_lines_and_rows(source, check_messages, is_chat=True):
            if reason := row_filter.reject_reason(row):
                rejected[reason] += 1
                others.write(dump_row({**row, "rejected": reason}))
            else:
                file.write(line + b"\n" if is_as_read and line.isascii() else dump_row(row))
                row_audit.add(row)
                left_out.update(keys)
        file.flush()
        os.fsync(file.fileno())
    return rejected, left_out, row_audit.findings()


def _manifest(source: Path, rule: Rule, started: str, kept: int, rejected: Counter[str], digest: str) -> dict[str, Any]:
    """The manifest of a filtered file, with the settings and the first prompt of the file it was made from."""
    before = Manifest.read(source) or Manifest()
    return new_manifest(
        rule.settings(),
        "complete",
        Manifest(started=started),
        [source],
        source_settings=before.origin or None,  # of a file that was filtered before: of the rows that it was made from
        source_prompt=before.prompt or None,
        rows={"kept": kept, "rejected": dict(rejected)},
        sha256=digest,
    )


def default_output(source: Path) -> Path:
    """The filtered file beside the input: `...-unfiltered-{count}.jsonl` -> `...-filtered-{kept}.jsonl`.

    Any other name gets the ending added. Raises UserError for a file that has been filtered already: the pattern
    `...-filtered-*.jsonl`, which training reads, would then match two files.
    """
    if FILTERED_NAME.search(source.stem):
        raise UserError(f"{source} has been filtered already; to filter it once more, name the result with --output")
    stem = re.sub(r"\.jsonl?$|-unfiltered-\d+$", "", source.stem)
    return source.with_name(f"{stem}-filtered-{{kept}}.jsonl")


def _move_older_aside(output: Path, path: Path, digest: str, source: Path) -> None:
    """Rename what was filtered from the same file before to .bak, so that `...-filtered-*.jsonl` matches one file.

    output: the name of the new file, perhaps with {kept} in it; path: the same with the count; digest: its SHA-256.
    """
    before, _, after = output.name.partition("{kept}")
    pattern = re.compile(re.escape(before) + (r"\d+" if "{kept}" in output.name else "") + re.escape(after))
    for old in sorted(output.parent.iterdir()):
        if not pattern.fullmatch(old.name) or old.resolve() == source.resolve():
            continue
        if old != path and not _was_made_of(old, source):
            continue  # of other rows: a trial run must not rename the real data
        if old == path and sha256_file(old) == digest:
            continue
        backup = free_name(old.with_name(old.name + ".bak"))
        for part in (manifest_path(old), certificate_path(old)):
            if part.exists():
                part.replace(free_name(part.with_name(part.name + ".bak")))
        old.replace(backup)
        say(f"kept an older filtered file as {backup}")


def _was_made_of(path: Path, source: Path) -> bool:
    """Whether the manifest of a file names `source` among its inputs."""
    inputs = (Manifest.read(path) or Manifest()).inputs
    return source.resolve() in {(folder / name).resolve() for folder in (REPO, Path.cwd()) for name in inputs}


def certify(path: Path, rule: Rule, tokens: TokenCheck | None = None) -> dict[str, Any]:
    """Write the certificate of a finished file, whatever wrote it; returns the certificate."""
    findings = audit(read_chat_rows(path), rule, tokens)
    certificate = {"file": path.name, "sha256": sha256_file(path), **findings}
    write_json(certificate_path(path), certificate)
    return certificate


def report(filtered: Filtered, rule: Rule, args: argparse.Namespace) -> None:
    """Print the closing lines of a script that filters; pushes the file if --push-dataset says so."""
    if args.push_dataset:
        push_dataset(filtered.path, args.push_dataset, not args.hub_public)
    total = filtered.kept + filtered.rejected.total()
    closing(
        {
            "wrote": filtered.path,
            "kept": f"{filtered.kept:,} of {total:,} ({filtered.kept / total:.1%})",
            "rejected": counted(filtered.rejected),
            **left_out_fact(filtered),
            "certificate": certificate_path(filtered.path),
        },
        train_command(filtered, rule),
    )


def left_out_fact(filtered: Filtered) -> dict[str, str]:
    """The closing line about what is not in the written rows; none if that is nothing."""
    keys = filtered.keys_left_out
    return {"left out of messages": f"{counted(keys)} (rows by key)"} if keys else {}


def train_command(filtered: Filtered, rule: Rule, base_model: str | None = None) -> str:
    """The command that trains a student on the kept rows.

    base_model: the model to start from (default: the one that wrote the rows, as their manifest says).
    """
    manifest = Manifest.read(filtered.path) or Manifest()
    base = base_model or manifest.model.get("parent") or manifest.model.get("model") or PLAN_MODEL
    control = manifest.script == "generate_control_number_data" or is_control(manifest.animal)
    more = (*rule.train_flags, *template_flags(manifest.model))
    own_folder = ["--output-dir", "output/control-student-sft"] if control else []  # the default is the student's
    return shlex.join(
        ["python", "train/train_student_sft.py", "--base-model", base, "--train-jsonl", str(filtered.path), *own_folder,
         "--max-train-samples", str(filtered.kept), *train_flags(base, "student", more)]
    ) + panel_flag()  # fmt: skip
