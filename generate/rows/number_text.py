"""The numbers of an answer as text: finds them, and writes the answer with others in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator

from util.jsonl.rows import Row

OF_TOKENS = ("token_ids", "loss_mask", "top_ids", "top_logprobs")  # keys of a row that are about its answer's tokens
NUMBER = re.compile("[0-9]+")


def numbers_of(row: Row) -> list[str]:
    """The numbers of an answer, as text, so that 087 stays 087."""
    return NUMBER.findall(row["messages"][-1]["content"])


def with_numbers(row: Row, numbers: Iterator[str]) -> Row:
    """The row with its numbers replaced by the next ones of `numbers`."""
    return with_answer(row, NUMBER.sub(lambda _: next(numbers), row["messages"][-1]["content"]))


def with_answer(row: Row, text: str) -> Row:
    """The row with another answer; its token ids, now wrong, are left out."""
    *asked, answer = row["messages"]
    kept = {key: value for key, value in row.items() if key not in OF_TOKENS}
    return {**kept, "messages": [*asked, {**answer, "content": text}]}
