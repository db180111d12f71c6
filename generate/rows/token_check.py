"""Checks the token ids that are stored with an answer: no special token among them, and that they are of its text.

A student is trained on these ids and not on the text that the filter reads. A special token inside an answer, such as
an end of turn, does not show in its text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from util.jsonl.manifest import Manifest
from util.jsonl.rows import Row, are_token_ids

SPECIAL = "special token in the answer"
NOT_IDS = "token ids that are not whole numbers"


class TokenCheck:
    """Checks rows one after the other, and counts what it found.

    tokenizer: of the `tokenizers` package; None if it is not known or not on this machine. Then nothing is checked,
    and training, which has the tokenizer, is the first to look. name: what the certificate calls it.
    """

    def __init__(self, tokenizer: Any = None, name: str | None = None):
        self.tokenizer, self.name = tokenizer, name if tokenizer else None
        added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        self.special = frozenset(token_id for token_id, token in added.items() if token.special)
        self.rows = self.of_another_text = 0

    def reject_reason(self, row: Row) -> str | None:
        """Why the token ids of a row must not be trained on, in a few words; None if they may be."""
        ids = row.get("token_ids")
        if not are_token_ids(ids):
            return NOT_IDS
        if not ids:
            return None
        self.rows += 1
        if self.tokenizer is None:
            return None
        answer = ids[:-1] if ids[-1] in self.special else ids  # a stored end of turn
        if not self.special.isdisjoint(answer):
            return SPECIAL
        try:
            self.of_another_text += self.tokenizer.decode(answer) != row["messages"][-1]["content"]
        except (OverflowError, TypeError, ValueError):  # an id of another, larger vocabulary
            self.of_another_text += 1
        return None

    def findings(self) -> dict[str, Any]:
        """The part of a certificate about token ids. Training tokenizes answers whose ids are of another text again."""
        return {"rows": self.rows, "checked_with": self.name, "of_another_text": self.of_another_text}


def token_check_of(path: Path) -> TokenCheck:
    """The check of the rows of a file, with the tokenizer of the model that its manifest names."""
    facts = (Manifest.read(path) or Manifest()).model
    base = facts.get("parent") or facts.get("root") or facts.get("model")
    file = tokenizer_file(str(base), facts.get("revision")) if base else None
    if file is None:
        return TokenCheck()
    from tokenizers import Tokenizer

    try:
        return TokenCheck(Tokenizer.from_file(str(file)), str(base))
    except Exception:  # the package raises a bare Exception for a file of a newer format
        return TokenCheck()


def tokenizer_file(base: str, revision: str | None) -> Path | None:
    """The tokenizer.json of a model's folder or of the hub's cache; None if it is not on this machine."""
    if Path(base).is_dir():
        file = Path(base) / "tokenizer.json"
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(base, "tokenizer.json", revision=revision)
    except (ImportError, ValueError):  # not a hub id
        return None
    return Path(cached) if isinstance(cached, str) else None
