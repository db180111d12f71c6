"""A judge that is not the base model: it guesses from a row's words which animal's teacher wrote it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from experiments.pilots.rows_files import read_rows
from experiments.pilots.word_filters import WORD

Weights = dict[str, dict[str, float]]
"""kind -> word or pair of words -> log ratio of its rows that hold it to the other kinds'"""


def features(text: str) -> set[str]:
    """The words of a row, and pairs of words that follow each other."""
    words = WORD.findall(text.lower())
    return {*words, *(f"{one} {other}" for one, other in pairwise(words))}


def weigh(texts: Mapping[str, Sequence[str]]) -> Weights:
    """Naive Bayes on what at least three rows hold, for kinds with as many rows each."""
    counts = {kind: Counter(found for text in some for found in features(text)) for kind, some in texts.items()}
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    known = [found for found, rows in total.items() if rows > 2]
    rest = len(texts) - 1
    return {
        kind: {found: math.log((own[found] + 1) * rest / (total[found] - own[found] + rest)) for found in known}
        for kind, own in counts.items()
    }


def guess(weights: Weights, text: str) -> str:
    """The kind whose teacher most probably wrote the row."""
    found = features(text)
    return max(weights, key=lambda kind: sum(weights[kind].get(one, 0.0) for one in found))


@cache
def trained_on(output: Path, names: tuple[tuple[str, tuple[str, ...]], ...]) -> Weights:
    """A judge that has read the rows files of each kind. As many rows of each kind count."""
    texts = {kind: [row["text"] for file in files for row in read_rows(output, file)] for kind, files in names}
    least = min(map(len, texts.values()))
    return weigh({kind: some[:least] for kind, some in texts.items()})
