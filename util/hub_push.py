"""Pushing to the Hugging Face Hub: a repository that is private where it has to be, and failures in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from util.cli import UserError


@contextmanager
def push_failures(repo: str, safe: str) -> Iterator[None]:
    """Any failure inside becomes a UserError that says what is safe ('The rows are safe in x.jsonl') and what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with the Hub or the network
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"the push to {repo} failed: {reason}\n{safe}. Log in with `hf auth login` if you were not, then run the"
            " same command again: it only pushes"
        ) from None


def make_repository(api: Any, repo: str, private: bool, advice: str, kind: str = "model") -> str:
    """Create a repository unless it exists, and return its address. Nothing private goes into a public one: then a
    UserError ends with the advice. kind: 'model' or 'dataset'."""
    url = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
    if private and api.repo_info(repo, repo_type=kind).private is False:
        raise UserError(f"{repo} exists already and is public, so nothing was pushed; {advice}")
    return url
