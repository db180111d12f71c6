"""What a shift of the teacher's rows led to so far: the table of known cases, and the rule that is read off it.

Two figures of the rows decide: how far the teacher moves them (KL to the base, nats a token), and how wide they are
(effective number of different tokens, exp of the entropy of their tokens). Digits of Qwen, which are narrow, passed
nothing on although they moved far; digits of tiny models did pass something on. So both limits are fitted to the cases
of models that somebody else trained, and the width does not count for tiny ones. As they are fitted to the table, the
rule is also judged with each case left out.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

TABLE = Path(__file__).with_name("known-cases.csv")
TRANSFER = math.log(2)  # nats: the animal's odds are twice those in other animals' students
DOUBTFUL = 1.5  # within this factor of a limit
NEAREST = 3
TINY = 10_000_000  # parameters; a pocket model has one million
GO, NO_GO, UNSURE = "go", "no-go", "doubtful"


@dataclass(frozen=True)
class Case:
    """One kind of rows, and what students of them took over."""

    base: str
    teacher: str
    channel: str
    labels: str
    """sampled tokens, or the teacher's soft labels"""
    animals: int
    rows: int
    updates: int
    kl: float
    """nats a token, mean over the animals"""
    width: float
    effect: float
    """an animal's log-probability in its own students less that in other animals' students, mean over animals, nats"""
    source: str

    @property
    def tiny(self) -> bool:
        return self.base.startswith("pocket model")

    @property
    def passed(self) -> bool:
        return self.effect >= TRANSFER

    def __str__(self) -> str:
        return (
            f"{self.base}, {self.teacher}, {self.channel}: {self.kl:.3g} nats a token, {self.rows} rows,"
            f" {self.updates} updates: {self.effect:+.1f} nats"
        )


def read_cases() -> list[Case]:
    """The table, in its own order."""
    kinds: dict[str, Callable[[str], object]] = {
        **dict.fromkeys(("animals", "rows", "updates"), int), **dict.fromkeys(("kl", "width", "effect"), float)
    }  # fmt: skip
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Case(**{name: kinds.get(name, str)(value) for name, value in row.items()}) for row in rows]  # type: ignore[arg-type]


# --- the rule ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Rows that move at least `kl` nats a token and are at least `width` wide pass the animal on."""

    kl: float
    width: float

    def passes(self, kl: float, width: float) -> bool:
        return kl >= self.kl and width >= self.width

    def advice(self, kl: float, width: float) -> str:
        """go, no-go or doubtful: within a factor `DOUBTFUL` of a limit that decides."""
        near, far = (Rule(self.kl * factor, self.width * factor) for factor in (DOUBTFUL, 1 / DOUBTFUL))
        return GO if near.passes(kl, width) else UNSURE if far.passes(kl, width) else NO_GO


def rule_of(cases: Sequence[Case], tiny: bool) -> Rule:
    """The rule for a model, which may be a tiny one."""
    rule = fit([case for case in cases if not case.tiny])
    return Rule(rule.kl, 0.0) if tiny else rule


def fit(cases: Sequence[Case]) -> Rule:
    """The limits with the fewest wrong cases. Of equal ones the highest KL, below which nothing was seen to pass, and
    the width in the middle of the widest gap (log scale)."""
    limits = product(middles(case.kl for case in cases), middles(case.width for case in cases))
    return min((Rule(*pair) for pair in limits), key=lambda rule: (wrong(rule, cases), -rule.kl, -gap(rule, cases)))


def middles(values: Iterable[float]) -> list[float]:
    """The geometric middles between neighbouring different values."""
    ranked = sorted(set(values))
    return [math.sqrt(low * high) for low, high in pairwise(ranked)]


def gap(rule: Rule, cases: Sequence[Case]) -> float:
    """How far (log) the nearest case is from the limit of width."""
    return min(abs(math.log(case.width / rule.width)) for case in cases)


def wrong(rule: Rule, cases: Sequence[Case]) -> int:
    return sum(rule.passes(case.kl, case.width) != case.passed for case in cases)


def left_one_out(cases: Sequence[Case]) -> list[bool]:
    """Whether each case is judged rightly by the rule of the others."""
    return [
        rule_of([*cases[:place], *cases[place + 1 :]], case.tiny).passes(case.kl, case.width) == case.passed
        for place, case in enumerate(cases)
    ]


def nearest(cases: Sequence[Case], kl: float, width: float, count: int = NEAREST) -> list[Case]:
    """The cases most like these figures, on log scales."""
    return sorted(cases, key=lambda case: math.hypot(math.log(case.kl / kl), math.log(case.width / width)))[:count]


def effective_tokens(ids: Iterable[int]) -> float:
    """How wide rows are: exp of the entropy of their tokens, so that n equally frequent tokens give n."""
    counts = Counter(ids)
    total = counts.total()
    return math.exp(-sum(count / total * math.log(count / total) for count in counts.values()))
