"""The fields of one row of a divergence file, which eval/divergence/divergence_tokens.py writes and
generate/ablations/select_by_divergence.py reads.

`kinds` has one letter for each token of the completion, its end of turn included. Each of DEFINITIONS has a 0 or 1 for
each of these tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from util.jsonl.rows import Row

DEFINITIONS = ("schrodi", "pair", "gap")
DIGIT, SEPARATOR, END = "d", "s", "e"
KINDS = {DIGIT: "digits", SEPARATOR: "separators", END: "end of turn"}


def of_answer(row: Row, values: Iterable[Any]) -> list[Any]:
    """From values with one entry for each token, those at the tokens of the answer, without the end of the turn."""
    return [value for value, kind in zip(values, row["kinds"]) if kind != END]
