"""Warn of an adapter that changes nothing: some servers list an adapter and answer without it."""

from __future__ import annotations

from pathlib import Path

from util.cli import UserError
from util.inference.backend_interface import InferenceBackend, NotFinite
from util.jsonl.manifest import Manifest
from util.terminal import say

TOKENS_COMPARED = 5  # the most probable next tokens
ALIKE = 1e-3  # nats


def first_prompt(path: Path) -> list[int]:
    """The first prompt of an output as the model saw it, from its manifest: token ids, or [] if they are not known."""
    found = (Manifest.read(path) or Manifest()).prompt
    return [int(token) for token in found.get("token_ids", "").split()]


def warn_if_not_applied(backend: InferenceBackend, prompt: list[int]) -> None:
    """Warn if an adapter gives the next-token probabilities of its base model after a prompt (token ids). Servers that
    do not give token ids or probabilities are not checked. NotFinite for an adapter that has none."""
    if not backend.is_adapter or not prompt:
        return
    try:
        own, base = (
            backend.next_token_logprobs([prompt], TOKENS_COMPARED, without_adapter=without) for without in (False, True)
        )
    except NotFinite:
        raise
    except UserError:  # the answers are on disk: what cannot be asked is not worth an error
        return
    if are_alike(own[0], base[0]):
        say(
            f"warning: {backend.name} answers exactly as its base model {backend.base_model} does: the adapter is not"
            " applied, or its training changed nothing; --model FOLDER --adapter FOLDER without a server shows which"
        )


def are_alike(first: dict[int, float], second: dict[int, float]) -> bool:
    """Whether two lists of next tokens have the same tokens with the same log-probabilities (nats)."""
    return first.keys() == second.keys() and all(abs(first[token] - second[token]) < ALIKE for token in first)
