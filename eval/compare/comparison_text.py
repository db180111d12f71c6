"""A comparison of arms as text: tables, verdicts, and the placebo and assignment tests in a sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.compare.comparison import ArmComparison, AssignmentTest, PairwiseRow, Placebo
from eval.compare.intervals import POWER, Ends
from eval.compare.verdict import POWER_ANSWERS
from eval.number_format import p_value, percent
from util.terminal import say, table

COLLAPSED = 0.05  # more answers than this that name no animal: the model may have lost the question


class Unit(NamedTuple):
    """How the figures of a measure are written."""

    value: str
    difference: str
    factor: float

    def of(self, value: float) -> str:
        return self.value.format(self.factor * value)

    def gap(self, value: float) -> str:
        return self.difference.format(self.factor * value)

    def gap_or_none(self, value: float | None) -> str:
        return "none would" if value is None else self.gap(value)

    def span(self, ends: Ends) -> str:
        low, high = (self.factor * end for end in ends)
        return f"{low:.2f} to {high:.2f}"


PERCENT = Unit("{:.2f}%", "{:+.2f} points", 100.0)
UNITS = {"share": PERCENT, "panel": PERCENT, "margin": Unit("{:+.2f}", "{:+.2f} nats", 1.0)}


def show(found: ArmComparison) -> None:
    """Print one animal's tables and what to look at before believing them."""
    unit = UNITS[found.measure]
    arms = [
        (role, arm.seeds, unit.of(arm.share), unit.span(arm.interval), percent(arm.non_answers), percent(arm.uncovered))
        for role, arm in found.shares.items()
    ]
    heading = ("arm", "seeds", f"{found.animal} {found.measure}", "95% interval", "non-answers", "uncovered")
    print(table(heading, arms), "\n")
    differences = [
        (role, unit.gap(one.difference), unit.span(one.interval), p_value(one.p))
        for role, one in found.target_minus.items()
    ]
    print(table(("target minus", "difference", "95% interval", "p"), differences), "\n")
    if found.power:
        show_power(found)
    if found.placebo:
        print(f"{placebo_words(found.animal, found.placebo)}\n")
    warn_of_arms(found)


def show_power(found: ArmComparison) -> None:
    """Print the smallest difference that so many seeds find."""
    unit, sampled = UNITS[found.measure], found.measure == "share"
    lines = [
        (line.seeds, unit.gap_or_none(line.exact), *([unit.gap_or_none(line.sampled)] if sampled else []))
        for line in found.power
    ]
    print(f"smallest target minus control that so many seeds an arm call transfer with about {POWER:.0%} probability:")
    print(table(("seeds", "exact", *([f"{POWER_ANSWERS} answers a question"] if sampled else [])), lines), "\n")


def warn_of_arms(found: ArmComparison) -> None:
    """Point at arms that hardly name animals any more, and at arms of one seed."""
    for role, arm in found.shares.items():
        if arm.non_answers > COLLAPSED:
            kinds = ", ".join(f"{kind} {percent(mass)}" for kind, mass in arm.non_answer_kinds.items())
            say(f"{role}: {percent(arm.non_answers)} of the answers name no animal ({kinds}): read some of them")
    if any(arm.seeds == 1 for role, arm in found.shares.items() if role != "base"):
        say("one training seed in an arm: its intervals are over questions alone, another seed may give another share")


def placebo_words(animal: str, found: Placebo) -> str:
    """The placebo test in one sentence."""
    names = [*found.furthest, *["..."] * (found.further > len(found.furthest))]
    return (
        f"placebo: {animal} rose by {found.shift:+.2f} nats of log-probability over the other-animal students; of"
        f" {found.animals} animals that nobody was taught {found.further or 'none'} rose as far"
        f"{' (' + ', '.join(names) + ')' if names else ''}, p {p_value(found.p)}"
    )


def assignment_words(found: AssignmentTest) -> str:
    """The assignment test in one sentence."""
    return (
        f"of {found.assignments:,} ways to give the animals to the students {found.as_well:,} fit the margins as well"
        f" as the true one, itself counted: p {found.p:.2g} (margins sum to {found.sum.true:.2f} nats; best other way"
        f" {found.sum.best_other:.2f}; all {found.sum.mean:.2f}, sd {found.sum.sd:.2f}); {found.own_highest} of"
        f" {len(found.animals)} animals stand highest in their own students"
    )


def show_pairwise(rows: Sequence[PairwiseRow], measure: str) -> None:
    """Print share or margin of every trained animal in every arm."""
    lines = [(row.arm, *map(UNITS[measure].of, row.shares.values())) for row in rows]
    print(table(("arm", *rows[0].shares), lines), "\n")


def verdict_words(found: ArmComparison) -> str:
    """A verdict with its adjusted p-value, where several animals were looked at, and the placebo's."""
    said = [] if found.p_holm is None else [f"Holm p {p_value(found.p_holm)}"]
    said += [f"placebo p {found.placebo.p:.2g}"] if found.placebo else []
    return found.verdict + (f" ({', '.join(said)})" if said else "")
