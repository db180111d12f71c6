"""How far a teacher moves its rows: means over tokens and rows, with intervals that take rows as independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eval.divergence.token_summary import ANSWER, TokenSummary
from eval.divergence.which_tokens_diverge import BASE, TEACHER
from util.jsonl.rows import Row

Z95 = 1.96


def shift_figures(rows: Sequence[Row], summary: TokenSummary) -> dict[str, Any]:
    """rows: as eval/divergence/score_tokens.py scores them. Returns "kl" (nats a token) and "ratio" (log-likelihood of
    teacher less base, nats a row), each (mean, low, high), and "divergence": {definition: share of answer tokens}."""
    kl = [sum(row["kl"]) for row in rows]
    ratio = [sum(row["logprob"][TEACHER]) - sum(row["logprob"][BASE]) for row in rows]
    return {
        "rows": len(rows),
        "kl": mean_a_token(kl, [len(row["kl"]) for row in rows]),
        "ratio": mean_a_token(ratio, [1] * len(ratio)),
        "divergence": {name: by.fractions[ANSWER][0] for name, by in summary.definitions.items()},
    }


def mean_a_token(sums: Sequence[float], tokens: Sequence[int]) -> tuple[float, float, float]:
    """(ratio of totals, low, high): 95%, linearised over rows (Cochran 1977, 6.4)."""
    total, rows = sum(tokens), len(sums)
    mean = sum(sums) / total
    squares = sum((one - mean * count) ** 2 for one, count in zip(sums, tokens))
    half = Z95 * math.sqrt(squares * rows / max(1, rows - 1)) / total
    return mean, mean - half, mean + half
