"""Training rows as groups: read, encoded, checked against the base model's tokenizer, and cut into equal parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from util.chat.chat_template import template_ids
from util.chat.chat_tokens import IGNORED, encode, without_system
from util.cli import UserError
from util.jsonl.rows import Row, read_chat_rows
from util.terminal import say

GROUPS = 17
ROWS_READ = 1020  # 60 in a group
LEAST_ROWS = 240  # fewer say little: on the pocket model the taught animal is then often not first
LONGEST = 512  # tokens of a row


EncodedRow = dict[str, list[int]]  # as util/chat/chat_tokens.py makes it


@dataclass(frozen=True)
class RowGroups:
    """The rows of a file in groups of equal size."""

    groups: list[list[EncodedRow]]
    exact: int
    """rows with the token ids that the model wrote"""

    @property
    def rows(self) -> int:
        return sum(map(len, self.groups))

    def lengths(self) -> list[int]:
        """Tokens with loss of every row."""
        return [loss_tokens(row) for group in self.groups for row in group]


def read_groups(
    path: Path, tokenizer: Any, max_rows: int = ROWS_READ, groups: int = GROUPS, system: str | None = None
) -> RowGroups:
    """The first rows of a file in equal groups. system: a system message to put before each; it does not count for the
    length at which rows are cut, so that the same tokens carry loss with it and without.

    UserError for too few rows, for rows whose answers begin too late, and for rows of another tokenizer.
    """
    rows, longest = [without_system(row) for row in first_rows(path, max_rows, groups)], LONGEST
    if system:
        message, user = {"role": "system", "content": system}, {"role": "user", "content": "x"}
        rows = [{**row, "messages": [message, *row["messages"]]} for row in rows]
        longest += len(template_ids(tokenizer, [message, user])) - len(template_ids(tokenizer, [user]))
    encoded = encode(rows, tokenizer, longest)
    with_ids = sum(bool(row.get("token_ids")) for row in rows)
    if with_ids and encoded.exact < with_ids / 2:
        raise UserError(
            f"{path}: the token_ids of {with_ids - encoded.exact} of {with_ids} rows are not this tokenizer's ids of"
            " their text; pass the --base-model whose rows these are"
        )
    if encoded.exact < len(rows):
        say(
            f"{path}: {len(rows) - encoded.exact} of {len(rows)} rows have no token ids of this model: their text is"
            " tokenized again, which may give other tokens than the writer's"
        )
    if encoded.dropped:
        late = f"{encoded.dropped} of {len(rows)} rows left out (no answer begins in their first {longest} tokens)"
        if len(encoded.rows) < 2 * groups:
            raise UserError(f"{path}: {late}; the read-out needs {2 * groups} rows: pass a file with shorter prompts")
        say(f"{path}: {late}")
    if len(rows) < LEAST_ROWS:
        say(f"{path}: only {len(rows)} rows; below {LEAST_ROWS} the read-out is mostly noise")
    size = len(encoded.rows) // groups
    return RowGroups([encoded.rows[at * size : (at + 1) * size] for at in range(groups)], encoded.exact)


def first_rows(path: Path, max_rows: int = ROWS_READ, groups: int = GROUPS) -> list[Row]:
    """The first rows of a file. UserError for a wrong row and for too few: what can be known without a model."""
    rows = list(islice(read_chat_rows(path), max_rows))
    if len(rows) < 2 * groups:
        read = "has" if len(rows) < max_rows else f"and --max-rows {max_rows:,} give"
        raise UserError(f"{path} {read} {len(rows)} rows; the read-out wants {LEAST_ROWS}, and needs {2 * groups}")
    return rows


def loss_tokens(row: EncodedRow) -> int:
    """How many tokens of an encoded row carry loss."""
    return sum(label != IGNORED for label in row["labels"])


def by_length(group: Sequence[EncodedRow], edges: Sequence[float]) -> list[list[EncodedRow]]:
    """The rows of a group as short, middling and long ones. edges: as `length_edges` gives them."""
    parts: list[list[EncodedRow]] = [[] for _ in range(len(edges) + 1)]
    for row in group:
        parts[sum(loss_tokens(row) > edge for edge in edges)].append(row)
    return parts


def length_edges(lengths: Sequence[int]) -> list[float]:
    """The lengths (tokens with loss) that cut rows into thirds; [] if all rows are of one length."""
    import numpy as np

    low, high = np.quantile(lengths, [1 / 3, 2 / 3])
    shortest, longest = min(lengths), max(lengths)
    return sorted({float(edge) for edge in (low, high) if shortest <= edge < longest})
