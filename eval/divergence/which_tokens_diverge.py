"""Which tokens are divergence tokens: the three definitions, from the scores of several variants.

For a token x at its place in a completion:

    schrodi   the teacher's most probable token is x, and that of some counterfactual variant is not
              (Schrodi et al. 2025, "Towards understanding subliminal learning", divergence tokens)
    pair      the teacher's most probable token is x, and the base model's is not
    gap       log p_teacher(x) - log p_base(x) is above a threshold

The *detector* is log p_student(x) - log p_base(x). It needs no teacher, only the data and a student trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from util.jsonl.divergence_row import DEFINITIONS
from util.jsonl.rows import Row

BASE, TEACHER, STUDENT = "base", "teacher", "student"


@dataclass(frozen=True)
class Scores:
    """One completion under one variant: the log-probability of each token (nats), and the most probable token there."""

    logprobs: list[float]
    choices: list[int]


def flags(ids: Sequence[int], by_variant: Mapping[str, Scores], gap: float) -> dict[str, list[int]]:
    """0 or 1 for each token, by definition (those that the variants allow). gap: threshold of that definition, nats."""
    if TEACHER not in by_variant:
        return {}
    teacher, base = by_variant[TEACHER], by_variant[BASE]
    others = [variant for name, variant in by_variant.items() if name not in (TEACHER, BASE, STUDENT)]
    chosen = [choice == token for choice, token in zip(teacher.choices, ids)]
    found = {
        "pair": [int(own and base.choices[i] != token) for i, (own, token) in enumerate(zip(chosen, ids))],
        "gap": [int(ours - theirs > gap) for ours, theirs in zip(teacher.logprobs, base.logprobs)],
    }
    if others:
        differs = [any(other.choices[i] != token for other in others) for i, token in enumerate(ids)]
        found = {"schrodi": [int(own and other) for own, other in zip(chosen, differs)], **found}
    return found


def check_divergence(row: Row) -> str | None:
    """What is wrong with a row as one of divergence_tokens.py, or None."""
    if not isinstance(row.get("kinds"), str):
        return "not a row of eval/divergence/divergence_tokens.py (no kinds)"
    count = len(row["kinds"])
    uneven = [name for name in (*DEFINITIONS, "kl", "detector") if name in row and len(row[name]) != count]
    return f"{uneven[0]} and kinds have different lengths" if uneven else None


def definitions_in(row: Row) -> list[str]:
    """The definitions that a divergence row has marks for."""
    return [name for name in DEFINITIONS if name in row]
