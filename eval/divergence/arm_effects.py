"""Compare the arms of divergence runs: shifts of the log odds, paired by run, and their relation to divergence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from eval.compare.comparability import check_comparable
from eval.compare.intervals import LEVEL, Ends, share_interval, spread_of
from eval.compare.read_results import Result, arm_spread, seeds_by_questions
from eval.divergence.read_divergence_runs import (
    ALL,
    DENSITIES,
    RunArms,
    animals_in,
    described_rows,
    divergence_of,
    read_arms,
    read_base,
    rows_trained_on,
)
from eval.divergence.token_summary import ANSWER, summarize
from eval.divergence.which_tokens_diverge import check_divergence
from util.jsonl.rows import Row, read_rows

if TYPE_CHECKING:
    import numpy as np

CONTROLS = {"only": "random", "without": "all-but-random", "rows-rich": "rows-random", "rows-poor": "rows-random"}


@dataclass(frozen=True)
class PairedDifference:
    """The mean of differences of log odds within each run, in nats."""

    mean: float
    interval: Ends
    """over runs and questions"""
    by_run: list[float]


@dataclass(frozen=True)
class DivergenceArm:
    """The students of one arm. The fields are the keys of the JSON file."""

    animal: str
    arm: str
    runs: list[str]
    rows: float
    """mean over the runs, like the next field"""
    tokens_with_loss: float
    density: list[dict[str, float]]
    """by run: `described_rows` of the rows trained on"""
    share: float
    interval: Ends
    base: float
    """share of the base model"""
    shares: list[float]
    """by run"""
    shift: PairedDifference
    """from the base model"""
    control: str | None
    """the arm with as many tokens or rows, drawn at random"""
    minus_control: PairedDifference | None
    minus_all: PairedDifference | None
    minus_other: PairedDifference | None
    """less the same arm of the other animals: the specific part"""


@dataclass(frozen=True)
class RunTokens:
    """The divergence tokens of one animal's numbers in one run."""

    animal: str
    run: str
    rows: int
    fraction: dict[str, tuple[float, float, float]]
    """by definition: of the answer tokens, with its interval"""
    evidence: dict[str, tuple[float, float]]
    """by definition: nats for the teacher on these tokens and on the others"""
    detector_auc: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r with Fisher's interval (1915); no interval for three points, no r for fewer or for equal values."""

    points: int
    r: float | None = None
    interval: Ends | None = None

    def to_json(self) -> dict[str, Any]:
        """As compare_divergence_arms.py writes it: unknown values are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


# --- one arm -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnimalRuns:
    """The students of one animal in all runs, and everything that they are compared with."""

    animal: str
    arms: RunArms
    others: list[RunArms]
    """of the other animals"""
    base: Result
    runs: Sequence[Path]
    found: list[dict[int, Row]]
    """by run: {id of a number row: its row in the divergence file}"""

    def odds(self, some: Iterable[Result]) -> np.ndarray:
        """Log odds of the animal, float64 [students, questions], nats."""
        results = list(some)
        return seeds_by_questions([log_odds(result, self.animal) for result in results], results, self.base.questions)

    def minus(self, arm: str, others: Sequence[dict[int, Result]]) -> PairedDifference | None:
        """Log odds of an arm less the mean of others, in the runs that have all of them; None if no run has."""
        both = sorted(set(self.arms[arm]).intersection(*others)) if others else []
        if not both:
            return None
        theirs = sum(self.odds(other[place] for place in both) for other in others) / len(others)
        return paired_difference(self.odds(self.arms[arm][place] for place in both) - theirs)

    def compared(self, arm: str) -> DivergenceArm:
        """One arm: its share, the shift of its log odds, and the differences to the arms it is compared with."""
        mine, count = self.arms[arm], len(self.base.questions)
        definition, _, treatment = arm.partition("-")
        control = f"{definition}-{CONTROLS[treatment]}" if treatment in CONTROLS else None
        spread = arm_spread(list(mine.values()), self.animal, self.base.questions, "share")
        rows = [described_rows(rows_trained_on(self.runs[i], self.animal, arm), self.found[i]) for i in mine]
        return DivergenceArm(
            animal=self.animal,
            arm=arm,
            runs=[str(self.runs[place]) for place in mine],
            rows=sum(facts["rows"] for facts in rows) / len(rows),
            tokens_with_loss=sum(facts["tokens_with_loss"] for facts in rows) / len(rows),
            density=rows,
            share=spread.share,
            interval=share_interval(spread),
            base=sum(self.base.shares(self.animal)) / count,
            shares=[sum(result.shares(self.animal)) / count for result in mine.values()],
            shift=paired_difference(self.odds(mine.values()) - self.odds([self.base])),
            control=control,
            minus_control=self.minus(arm, [self.arms.get(control, {})]) if control else None,
            minus_all=self.minus(arm, [self.arms.get(ALL, {})]) if arm != ALL else None,
            minus_other=self.minus(arm, [other.get(arm, {}) for other in self.others]),
        )


def log_odds(result: Result, animal: str) -> list[float]:
    """Log odds of an animal in each question, in nats. UserError if the file has no log-probability of it."""
    certain = -1e-6  # files have six decimals: closer to 0 the odds are not known
    return [log - math.log(-math.expm1(log)) for log in (min(logs[animal], certain) for logs in result.logs_of(animal))]


def paired_difference(values: np.ndarray) -> PairedDifference:
    """The mean of differences [runs, questions], with its interval over both."""
    spread = spread_of(values, linear=True)
    return PairedDifference(spread.share, share_interval(spread), values.mean(1).tolist())


# --- all arms and runs -------------------------------------------------------------------------------


def arms_of(runs: Sequence[Path]) -> list[DivergenceArm]:
    """Every arm of every animal, over all runs."""
    animals, base = animals_in(runs), read_base(runs[0])
    students = {animal: read_arms(animal, runs) for animal in animals}
    check_comparable([base, *(one for arms in students.values() for some in arms.values() for one in some.values())])
    found = []
    for animal, arms in students.items():
        others = [other for name, other in students.items() if name != animal]
        mine = AnimalRuns(animal, arms, others, base, runs, [divergence_of(folder, animal) for folder in runs])
        found += [mine.compared(arm) for arm in arms]
    return found


def tokens_of(animal: str, runs: Sequence[Path]) -> list[RunTokens]:
    """The divergence tokens of an animal's numbers, one entry per run."""
    each = []
    for folder in runs:
        found = summarize(read_rows(folder / f"tokens-{animal}.jsonl", check_divergence))
        fraction = {name: by.fractions[ANSWER] for name, by in found.definitions.items()}
        evidence = {name: by.evidence for name, by in found.definitions.items()}
        each.append(RunTokens(animal, str(folder), found.rows, fraction, evidence, found.detector_auc))
    return each


def correlation(points: Sequence[tuple[float, float]]) -> Correlation:
    """Pearson's r of points (x, y)."""
    import numpy as np

    if len(points) < 3 or min(np.ptp(np.array(points), axis=0)) == 0:
        return Correlation(len(points))
    r = float(np.corrcoef(np.array(points).T)[0, 1])
    if len(points) == 3 or abs(r) >= 1:
        return Correlation(len(points), r)
    z, half = math.atanh(r), NormalDist().inv_cdf((1 + LEVEL) / 2) / math.sqrt(len(points) - 3)
    return Correlation(len(points), r, (math.tanh(z - half), math.tanh(z + half)))


def densities(arms: Sequence[DivergenceArm], name: str) -> Iterator[tuple[str, str, float, float]]:
    """(animal, arm, density in its rows, shift of the log odds) of every student trained on whole rows."""
    for arm in arms:
        if arm.arm == ALL or "-rows-" in arm.arm:
            for facts, shift in zip(arm.density, arm.shift.by_run):
                if name in facts:
                    yield arm.animal, arm.arm, facts[name], shift


def correlations(arms: Sequence[DivergenceArm]) -> dict[str, Correlation]:
    """By definition, over the runs of the arm *all*: density of divergence tokens against the shift of the student."""
    return {name: correlation([(x, y) for _, arm, x, y in densities(arms, name) if arm == ALL]) for name in DENSITIES}
