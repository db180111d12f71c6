"""One row of a divergence file: what eval/divergence/divergence_tokens.py writes and
generate/ablations/select_by_divergence.py reads.

`kinds` has one letter a token of the completion (its end of turn included), each of DEFINITIONS a 0 or 1 a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from util.jsonl.rows import Row

DEFINITIONS = ("schrodi", "pair", "gap")
DIGIT, SEPARATOR, END = "d", "s", "e"
KINDS = {DIGIT: "digits", SEPARATOR: "separators", END: "end of turn"}


def of_answer(row: Row, values: Iterable[Any]) -> list[Any]:
    """Of some values, one a token, those at the tokens of the answer: the end of the turn is left out."""
    return [value for value, kind in zip(values, row["kinds"]) if kind != END]
