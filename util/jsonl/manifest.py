"""The manifest beside each output: the model of its contents, reading, writing, and the facts that go into it (file
hashes, git commit, package versions)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from util.cli import REPO, command_line
from util.hide_secrets import scrub, scrub_json

SCHEMA_VERSION = 1
PACKAGES = (
    "accelerate", "datasets", "huggingface_hub", "openai", "pandas", "peft", "tokenizers", "torch",
    "transformers", "trl", "vllm", "wandb",
)  # fmt: skip
# The parser_facts of util/animals/answer_parser.py that replace the hash of its source text in older manifests.
PARSER_1 = {"version": 1, "names_sha256": "4a55a36e168e9ac9b13ae970df9235eb4d45071a9c46ad63dbb0ebd40490f5dc"}
SESSION = ("command", "git", "python", "packages")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8 (lone surrogates are allowed)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def adapter_sha256(folder: Path) -> str:
    """Hash of a PEFT adapter: its weights and its config. The same weights give the same hash on every machine."""
    parts = [sha256_file(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    return sha256_text("".join(parts))


def today() -> str:
    """The local date, which chat templates write, as in 2026-11-22."""
    return datetime.now().astimezone().date().isoformat()


def now() -> str:
    """UTC time to the second, as in 2026-11-22T13:05:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Manifest:
    """What a manifest says. Every part may be missing: not every script writes all of them."""

    settings: dict[str, Any] = field(default_factory=dict)
    """everything that decides the output; a resumed run must have the same"""
    state: str = ""
    """running or complete"""
    command: str = ""
    started: str = ""
    """UTC, as `now` writes it"""
    finished: str | None = None
    sha256: str | None = None
    """of the finished file"""
    days: list[str] = field(default_factory=list)
    """local dates of its sessions"""
    inputs: dict[str, str] = field(default_factory=dict)
    """{file that was read: its SHA-256}"""
    rows: dict[str, Any] = field(default_factory=dict)
    """{"kept": number, "rejected": {reason: number}}"""
    counts: dict[str, Any] = field(default_factory=dict)
    """what happened on the way: seconds, tokens, the first prompt, the training loss, ..."""
    source_settings: dict[str, Any] = field(default_factory=dict)
    """of a filtered file: the settings of the file that was filtered"""
    source_prompt: dict[str, Any] = field(default_factory=dict)
    """of a filtered file: the first prompt of the file that was filtered"""
    train_jsonl: str = ""
    """of a training: the name of the file with its rows"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """of a training: its arguments"""
    speed: dict[str, Any] = field(default_factory=dict)
    """of a training: how fast it was"""
    wandb_run_id: str | None = None
    git: dict[str, Any] = field(default_factory=dict)
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    writer: dict[str, Any] = field(default_factory=dict)
    """{"pid", "host"} of the process that wrote it"""
    earlier_sessions: list[dict[str, Any]] = field(default_factory=list)
    """`session` of the runs that this output was continued from"""

    @property
    def origin(self) -> dict[str, Any]:
        """The settings under which the rows were made; a filtered file keeps those of the file that was filtered."""
        return self.source_settings or self.settings

    @property
    def script(self) -> str:
        """The script that made the rows: "generate_llm_number_data", "train_student_sft", "eval", ..."""
        return str(self.origin.get("script") or "")

    @property
    def prompt(self) -> dict[str, Any]:
        """The first prompt of the rows, as util.chat.prompt_consistency.prompt_entry made it; {} if it is not known."""
        return self.source_prompt or self.counts.get("prompt") or {}

    @property
    def prompt_days(self) -> list[str]:
        """The dates on which the prompts were rendered: a chat template may write the date."""
        return self.prompt.get("days") or self.days or [self.started[:10]]

    @property
    def animal(self) -> str | None:
        """The animal that was asked for, where one was."""
        return self.origin.get("animal")

    @property
    def model(self) -> dict[str, Any]:
        """The facts of the model that was asked, or of the base model that was trained; {} if they are not known."""
        found = self.origin.get("base") or self.origin.get("model")
        return found if isinstance(found, dict) else {}

    @property
    def session(self) -> dict[str, Any]:
        """Command, code and packages of the process that wrote it; {} if they are not known."""
        return {name: getattr(self, name) for name in SESSION} if self.command else {}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Manifest:
        """The manifest in a JSON object of any version of the suite; parts that are not known, or not of the type they
        should have, are left out."""
        empty = cls()
        parts = {
            part.name: found[part.name]
            for part in fields(cls)
            if isinstance(found.get(part.name), type(getattr(empty, part.name)) if part.default is not None else str)
        }
        for name in ("settings", "source_settings"):
            if name in parts:
                parts[name] = _with_new_names(parts[name])
        return cls(**_of_known_types(parts, PARTS))

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The manifest of an output; None if there is none, it cannot be read or it has no settings."""
        try:
            found = json.loads(manifest_path(path).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
            return None
        return cls.from_json(found)


_MODEL = {"model": str, "revision": str, "files_sha256": str, "adapter_sha256": str, "root": str, "parent": str}
_SETTINGS = {"animal": str, "parser": {}, "questions": list, "sampling": {}, "model": _MODEL, "base": _MODEL}
_PROMPT = {"base_model": str, "messages": list, "token_ids": str, "days": list}
_TRAINING = {"animal": str, "kind": str, "train_jsonl": str}
# What is read of the parts of a manifest, with its type; {} is a dict of anything.
PARTS: dict[str, Any] = {
    "settings": _SETTINGS,
    "source_settings": _SETTINGS,
    "source_prompt": _PROMPT,
    "counts": {"adapter": str, "training": _TRAINING, "prompt": _PROMPT},
}


def _of_known_types(found: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without those of another type than here, at any depth: they come from a manifest that was edited."""
    kept = {}
    for name, value in found.items():
        wanted = types.get(name)
        if isinstance(wanted, dict) and isinstance(value, dict):
            kept[name] = _of_known_types(value, wanted)
        elif wanted is None or value is None or isinstance(value, dict if isinstance(wanted, dict) else wanted):
            kept[name] = value
    return kept


def _with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are written now. Until 2026-11-28 they had a hash of the parser's source text, which counts as
    version 1 of the parser, and variants were called voices."""
    new = {"parser_sha256": ("parser", dict(PARSER_1)), "voices": ("variants", settings.get("voices"))}
    return dict(new.get(key, (key, value)) for key, value in settings.items())


def new_manifest(
    settings: Mapping[str, Any],
    state: str,
    before: Manifest | None = None,
    inputs: Iterable[Path] = (),
    **facts: Any,
) -> dict[str, Any]:
    """The manifest to write for an output: what decided it (settings), how it was made (this process), further facts.

    before: the manifest of the run that this process continues; its start and its sessions are kept.
    """
    before = before or Manifest()
    here = provenance(inputs)
    manifest = {
        **here,
        "earlier_sessions": earlier_sessions(before, here),
        "state": state,
        "settings": settings,
        "started": before.started or now(),
        "days": sorted({*before.days, today()}),
        "finished": now() if state == "complete" else None,
        **facts,
    }
    hidden: dict[str, Any] = scrub_json(manifest)
    return hidden


def earlier_sessions(before: Manifest, here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Command, code and packages of the sessions before this one: each kind once, the latest last, without this
    session's own kind."""
    found = [*before.earlier_sessions, *([before.session] if before.session else [])]
    now_here = {name: here[name] for name in SESSION}
    return [one for place, one in enumerate(found) if one != now_here and one not in found[:place]]


def provenance(inputs: Iterable[Path] = ()) -> dict[str, Any]:
    """The parts of a manifest that describe this process: command, code, packages, machine, input hashes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": scrub(command_line()),
        "git": git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "writer": {"pid": os.getpid(), "host": socket.gethostname()},
        "inputs": {named(path): sha256_file(path) for path in inputs},
    }


def named(path: Path) -> str:
    """The name of a file in a manifest: relative to the repository if it is inside, otherwise as it was given."""
    inside = path.is_absolute() and path.is_relative_to(REPO)
    return str(path.relative_to(REPO) if inside else path)


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the suite's checkout at the first call in this process; both None outside git."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(REPO), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def manifest_path(path: Path) -> Path:
    """`X.jsonl` -> `X.jsonl.manifest.json`; a folder keeps its manifest inside."""
    return path / "manifest.json" if path.is_dir() else path.with_name(path.name + ".manifest.json")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always either the old one or the whole new one."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `write_lines` does."""
    write_lines(path, [data])


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replace a file in one step: temporary file beside it, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
