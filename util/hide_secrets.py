"""Hides secrets in what is printed and stored: keys, values of this environment, passwords, queries of URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_PREFIXES = "hf_|sk-|wandb_v1_|gh[pousr]_|github_pat_|glpat-|gsk_|nvapi-"
_TOKEN = rf"(?:{_PREFIXES})[A-Za-z0-9_\-.]{{8,}}|AKIA[0-9A-Z]{{16}}|AIza[\w-]{{30,}}"
_VALUE = r"(?=[^\s'\"&,;]*\d)[^\s'\"&,;]{8,}"  # with a digit: a word after "key:" is a sentence about keys
_HIDDEN = (
    (re.compile(rf"\b(?:Bearer\s+[A-Za-z0-9_\-.]{{8,}}|{_TOKEN})|(?<=Authorization: )Basic\s+\S+"), "***"),
    (re.compile(r"(?<=://)[^/\s]+@"), "***@"),
    (re.compile(r"([?&#][\w.%-]+=)[^&#\s'\"<>)]+"), r"\1***"),
    (re.compile(rf"(?i)(--[\w-]*(?:key|token|secret|password)(?:\s+|=)['\"]?){_VALUE}"), r"\1***"),
    (
        re.compile(
            rf"(?i)((?:(?:api|access|auth|secret|private)[ _-]?(?:key|token)|password|passwd|secret)(?: provided)?"
            rf"['\"]?\s*[=:]\s*['\"]?){_VALUE}"
        ),
        r"\1***",
    ),
)
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASS|PASSWD|PASSWORD|CREDENTIALS?)$")
PROMPTS = ("messages", "questions", "system_prompt", "system")  # texts that a model was sent: kept as they were sent


def scrub(text: str) -> str:
    """Hide the secrets of this environment, and anything that looks like a key, a user and password in a URL, or the
    value of a query (`?api_key=...`)."""
    for secret in sorted(secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    return text


def scrub_json(value: Any) -> Any:
    """A JSON value with the secrets of its texts hidden, but for the prompts that a model was sent."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(str(key)): item if key in PROMPTS else scrub_json(item) for key, item in value.items()}
    return [scrub_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def secrets() -> set[str]:
    """The values of variables such as WANDB_API_KEY or HF_TOKEN, also as they are in a URL; a plain word is not a
    secret."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
    found = {value for value in values if len(value) >= 8 and not value.isalpha()}
    return found | {quote(value, safe="") for value in found}


def is_key(text: str) -> bool:
    """Whether a text is nothing but a key, or one of this environment's secrets."""
    return text in secrets() or any(re.fullmatch(_TOKEN, part) for part in text.split("/"))
