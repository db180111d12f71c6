"""Where a file came from: hashes, git state, package versions and the manifest written beside each output."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from util.cli import REPO, command_line

SCHEMA_VERSION = 1
PACKAGES = (
    "accelerate", "datasets", "huggingface_hub", "openai", "pandas", "peft", "tokenizers", "torch",
    "transformers", "trl", "vllm", "wandb",
)  # fmt: skip
# What util/animals/answer_parser.py says of itself where an older manifest has a hash of its source text.
PARSER_1 = {"version": 1, "names_sha256": "4a55a36e168e9ac9b13ae970df9235eb4d45071a9c46ad63dbb0ebd40490f5dc"}
SESSION = ("command", "git", "python", "packages")
_SECRET = re.compile(r"\b(hf_|sk-|wandb_v1_|Bearer\s+)[A-Za-z0-9_\-.]{8,}|(?<=://)[^/\s]+@")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


def scrub(text: str) -> str:
    """Hide the secrets of this environment, and anything that looks like a token or like a user and password in a
    URL."""
    for secret in sorted(secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET.sub(lambda match: "***@" if match[0].endswith("@") else "***", text)


def secrets() -> set[str]:
    """What stands in variables such as WANDB_API_KEY or HF_TOKEN; a plain word is no secret."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return {value for value in values if len(value) >= 8 and not value.isalpha()}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text in UTF-8 (lone surrogates are kept apart, not refused)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def adapter_sha256(folder: Path) -> str:
    """Hash of a PEFT adapter: its weights and its config. The same weights give the same name anywhere."""
    parts = [sha256_file(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    return sha256_text("".join(parts))


def now() -> str:
    """UTC time to the second, as in 2026-11-22T13:05:00Z."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_manifest(
    settings: Mapping[str, Any],
    state: str,
    before: Mapping[str, Any] | None = None,
    inputs: Iterable[Path] = (),
    **facts: Any,
) -> dict[str, Any]:
    """The manifest of an output: what decided it (settings), how it came about (this process), and any further facts.

    before: the manifest of the run that this process goes on with; its start and its sessions are kept.
    """
    before = before or {}
    here = provenance(inputs)
    return {
        **here,
        "earlier_sessions": earlier_sessions(before, here),
        "state": state,
        "settings": settings,
        "started": before.get("started") or now(),
        "finished": now() if state == "complete" else None,
        **facts,
    }


def earlier_sessions(before: Mapping[str, Any], here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Command, code and packages of the sessions before this one: each kind once, the latest last, without this
    session's own kind."""
    last = {name: before[name] for name in SESSION if name in before}
    told = [*before.get("earlier_sessions", []), *([last] if last else [])]
    now_here = {name: here[name] for name in SESSION}
    return [one for place, one in enumerate(told) if one != now_here and one not in told[:place]]


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
    """A file of the suite by its place in it, any other as it was given."""
    inside = path.is_absolute() and path.is_relative_to(REPO)
    return str(path.relative_to(REPO) if inside else path)


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the suite's checkout when this process first asked; both None outside git."""

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


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of an output in today's form, or None when there is none that can be read."""
    try:
        manifest = json.loads(manifest_path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    for part in ("settings", "source_settings"):
        if isinstance(settings := manifest.get(part), dict):
            manifest[part] = {_NEW_NAMES.get(key, key): _new_value(key, value) for key, value in settings.items()}
    return manifest


# Until 2026-11-28 a manifest held a hash of the parser's source text.
_NEW_NAMES = {"parser_sha256": "parser", "voices": "variants"}


def _new_value(key: str, value: Any) -> Any:
    return dict(PARSER_1) if key == "parser_sha256" else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: temporary file beside it, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
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
