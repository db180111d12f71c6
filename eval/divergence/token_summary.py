"""Summarize a divergence file: fractions of divergence tokens, evidence for the teacher, AUC of the detector."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.compare.statistics_as_text import percent_with_interval
from eval.divergence.which_tokens_diverge import BASE, TEACHER, definitions_in
from util.jsonl.divergence_row import DIGIT, END, KINDS, of_answer
from util.jsonl.rows import Row
from util.terminal import table

POSITIONS_SHOWN = 24
ANSWER = "answer"  # all tokens but the end of the turn
Fraction = tuple[float, float, float]


@dataclass(frozen=True)
class DefinitionSummary:
    """The tokens that one definition marks."""

    fractions: dict[str, Fraction]
    """marked fraction and its interval, by kind of token and for the whole answer"""
    rows_with_any: float
    evidence: tuple[float, float]
    """sum of log p_teacher - log p_base (nats) over the marked tokens of the answers, and over all others"""
    by_position: list[float]
    """marked fraction at each position in the answer"""

    def to_json(self) -> dict[str, Any]:
        """As divergence_tokens.py writes it: the fractions are keys beside the others."""
        rest = {name: value for name, value in asdict(self).items() if name != "fractions"}
        return {**self.fractions, **rest}


@dataclass(frozen=True)
class TokenSummary:
    """The summary of one divergence file."""

    rows: int
    definitions: dict[str, DefinitionSummary]
    kl: dict[str, float]
    """mean KL(teacher || base) by kind of token, nats; {} without a teacher"""
    detector: dict[str, float]
    """mean of log p_student - log p_base by kind of token, nats; {} without a student"""
    detector_auc: dict[str, dict[str, float]]
    """as `auc` gives it; {} unless there are a teacher and a student"""

    def to_json(self) -> dict[str, Any]:
        """As divergence_tokens.py writes it."""
        return {**asdict(self), "definitions": {name: found.to_json() for name, found in self.definitions.items()}}


class Tally:
    """Counts of one definition, added row by row so that a file need not fit in memory."""

    def __init__(self) -> None:
        self.counts: dict[str, list[tuple[int, int]]] = {kind: [] for kind in (*KINDS.values(), ANSWER)}
        self.positions: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.marked, self.others = 0.0, 0.0

    def add(self, row: Row, name: str) -> None:
        """Count a row's marks under the definition `name`."""
        for letter, kind in KINDS.items():
            marks = [mark for mark, k in zip(row[name], row["kinds"]) if k == letter]
            self.counts[kind].append((sum(marks), len(marks)))
        answer = of_answer(row, row[name])
        self.counts[ANSWER].append((sum(answer), len(answer)))
        pairs = zip(of_answer(row, row["logprob"][TEACHER]), of_answer(row, row["logprob"][BASE]))
        for place, (mark, (teacher, base)) in enumerate(zip(answer, pairs)):
            self.positions[place][0] += mark
            self.positions[place][1] += 1
            if mark:
                self.marked += teacher - base
            else:
                self.others += teacher - base

    def summary(self) -> DefinitionSummary:
        """What the rows added so far say."""
        answers = self.counts[ANSWER]
        return DefinitionSummary(
            fractions={kind: fraction_with_interval(pairs) for kind, pairs in self.counts.items()},
            rows_with_any=sum(marked > 0 for marked, _ in answers) / len(answers),
            evidence=(self.marked, self.others),
            by_position=[marked / tokens for _, (marked, tokens) in sorted(self.positions.items())],
        )


class Mean:
    """The mean of a value over tokens, by kind of token."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, kinds: str, values: Iterable[float]) -> None:
        for kind, value in zip(kinds, values):
            self.sums[kind][0] += value
            self.sums[kind][1] += 1

    def by_kind(self) -> dict[str, float]:
        return {KINDS[kind]: value / tokens for kind, (value, tokens) in self.sums.items()}


def summarize(rows: Iterable[Row]) -> TokenSummary:
    """The summary of a divergence file's rows."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    kl, detector = Mean(), Mean()
    total, detected = 0, []
    for row in rows:
        total += 1
        kl.add(row["kinds"], row.get("kl", ()))
        detector.add(row["kinds"], row.get("detector", ()))
        if "detector" in row:
            detected.append({name: row[name] for name in ("kinds", "detector", *definitions_in(row))})
        for name in definitions_in(row):
            tallies[name].add(row, name)
    return TokenSummary(
        rows=total,
        definitions={name: tally.summary() for name, tally in tallies.items()},
        kl=kl.by_kind(),
        detector=detector.by_kind(),
        detector_auc=auc(detected) if detected else {},
    )


def auc(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How well the detector finds divergence tokens: {definition: {"answer": ..., "digits": ...}}, for all tokens of
    the answers and for digits only. AUC is the chance that a divergence token scores higher than another token; 0.5 is
    chance level. A definition that marks no token, or all, is left out."""
    import numpy as np
    from scipy.stats import rankdata

    kinds = np.array([kind for row in rows for kind in of_answer(row, row["kinds"])])
    scores = np.array([score for row in rows for score in of_answer(row, row["detector"])])
    found: dict[str, dict[str, float]] = {}
    for name in definitions_in(rows[0]):
        marked = np.array([mark for row in rows for mark in of_answer(row, row[name])], dtype=bool)
        for part, among in (("answer", kinds != END), ("digits", kinds == DIGIT)):
            marks, ranks = marked[among], rankdata(scores[among])
            ours, others = int(marks.sum()), int((~marks).sum())
            if ours and others:
                above = ranks[marks].sum() - ours * (ours + 1) / 2
                found.setdefault(name, {})[part] = float(above / (ours * others))
    return found


def fraction_with_interval(counts: Iterable[tuple[int, int]]) -> tuple[float, float, float]:
    """(fraction, low, high) of flagged tokens, from (flagged, tokens) of each row. The fraction is a ratio of totals;
    its 95% interval treats rows, not tokens, as independent (linearised variance, Cochran 1977, 6.4)."""
    pairs = [(flagged, tokens) for flagged, tokens in counts if tokens]
    total = sum(tokens for _, tokens in pairs)
    if not total:
        return 0.0, 0.0, 0.0
    fraction = sum(flagged for flagged, _ in pairs) / total
    if len(pairs) < 2:
        return fraction, 0.0, 1.0
    squares = sum((flagged - fraction * tokens) ** 2 for flagged, tokens in pairs)
    half = 1.96 * math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
    return fraction, max(0.0, fraction - half), min(1.0, fraction + half)


# --- text --------------------------------------------------------------------------------------------


def print_summary(found: TokenSummary) -> None:
    """Print fractions by kind of token and by position, and the AUC of the detector."""
    if not found.definitions:
        return
    kinds = (ANSWER, *KINDS.values())
    rows = [
        (name, *(percent_with_interval(*by.fractions[kind]) for kind in kinds), f"{by.rows_with_any:.0%}",
         "{:+,.0f} / {:+,.0f}".format(*by.evidence))
        for name, by in found.definitions.items()
    ]  # fmt: skip
    print(f"{table(('definition', *kinds, 'rows with any', 'nats for the teacher: these / other tokens'), rows)}\n")
    longest = max(len(by.by_position) for by in found.definitions.values())
    places = [
        (place, *(f"{100 * by.by_position[place]:.1f}%" for by in found.definitions.values()))
        for place in range(min(longest, POSITIONS_SHOWN))
    ]
    print(f"{table(('position', *found.definitions), places)}\n")
    if found.detector_auc:
        aucs = [
            (name, *(f"{by[part]:.3f}" if part in by else "" for part in ("answer", "digits")))
            for name, by in found.detector_auc.items()
        ]
        print(f"{table(('AUC of the detector', 'answer', 'digits'), aucs)}\n")
