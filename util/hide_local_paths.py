"""What is published on the Hugging Face Hub names no folder of this machine: names of models, commands, settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.cli import REPO, UserError
from util.inference.backend_interface import model_name

OWNER_AND_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
CACHED = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/[0-9a-f]{40}$")  # a folder of the Hub's own cache


def check_repo_id(repo_id: str, flag: str) -> None:
    """UserError for a name that the Hub would refuse after hours of work. flag: the one that gives the name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{flag} gives the repository name {repo_id!r}: {error}") from None


def hub_id(base: Mapping[str, Any]) -> str | None:
    """The Hub id of a base model, for others to load; None for a folder of this machine, which may be called like one.

    base: what a manifest says of it (util.inference.load_model.model_facts); only folders have "files_sha256".
    """
    model = str(base["model"])
    if found := CACHED.search(str(Path(model).resolve())):
        return f"{found[1]}/{found[2]}"
    is_id = "files_sha256" not in base and not Path(model).exists() and OWNER_AND_NAME.fullmatch(model)
    return model if is_id else None


def base_name(base: Mapping[str, Any]) -> str:
    """A base model as a card names it: its Hub id, or what its folder is called."""
    return hub_id(base) or published(model_name(str(base["model"])))


def plain(value: object) -> str:
    """The text escaped for a Markdown table: shown unchanged, on one line."""
    return re.sub(r"([\\`*\[\]|<>&])", r"\\\1", " ".join(str(value).split()))


def published_command(command: str) -> str:
    """A command without folders of this machine."""
    try:
        words = shlex.split(command)
    except ValueError:
        return published(command)
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in words]
    return shlex.join(flag + equals + published(value) for flag, equals, value in parts)


def published(value: Any) -> Any:
    """A value without folders of this machine: an absolute path becomes relative (to here or to the suite), or its last
    part. Lists and objects are walked through."""
    if isinstance(value, Mapping):
        return {key: published(part) for key, part in value.items()}
    if isinstance(value, list):
        return [published(part) for part in value]
    if not isinstance(value, str) or not value.startswith("/") or "\n" in value:
        return value
    path = Path(value)
    inside = next((place for place in (Path.cwd(), REPO) if path.is_relative_to(place)), path.parent)
    return str(path.relative_to(inside))
