"""A comparison of arms as text: tables, the verdict, and a sentence each for the placebo and assignment tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.compare.comparison_result import ArmComparison, AssignmentTest, PairwiseRow, Placebo
from eval.compare.intervals import POWER, Ends
from eval.compare.verdict import POWER_ANSWERS
from eval.number_format import p_value, percent
from util.terminal import say, table

COLLAPSED = 0.05  # share of non-answers above which the model may no longer understand the question


class Unit(NamedTuple):
    """How the values of a measure are written."""

    value: str
    difference: str
    factor: float

    def of(self, value: float) -> str:
        return self.value.format(self.factor * value)

    def gap(self, value: float) -> str:
        return self.difference.format(self.factor * value)

    def gap_or_none(self, value: float | None) -> str:
        return "none" if value is None else self.gap(value)

    def span(self, ends: Ends) -> str:
        low, high = (self.factor * end for end in ends)
        return f"{low:.2f} to {high:.2f}"


PERCENT = Unit("{:.2f}%", "{:+.2f} points", 100.0)
UNITS = {"share": PERCENT, "panel": PERCENT, "margin": Unit("{:+.2f}", "{:+.2f} nats", 1.0)}


def show(found: ArmComparison) -> None:
    """Print one animal's tables, and warnings to read before believing them."""
    unit = UNITS[found.measure]
    arms = [
        (role, arm.seeds, unit.of(arm.share), unit.span(arm.interval), percent(arm.non_answers), percent(arm.uncovered))
        for role, arm in found.shares.items()
    ]
    heading = ("arm", "seeds", f"{found.animal} {found.measure}", "95% interval", "non-answers", "uncovered")
    print(f"{table(heading, arms)}\n")
    differences = [
        (role, unit.gap(one.difference), unit.span(one.interval), p_value(one.p))
        for role, one in found.target_minus.items()
    ]
    print(f"{table(('target minus', 'difference', '95% interval', 'p'), differences)}\n")
    if found.power:
        show_power(found)
    if found.placebo:
        print(f"{placebo_words(found.animal, found.placebo)}\n")
    warn_of_arms(found)


def show_power(found: ArmComparison) -> None:
    """Print the smallest difference that a number of seeds detects."""
    unit, sampled = UNITS[found.measure], found.measure == "share"
    lines = [
        (line.seeds, unit.gap_or_none(line.exact), *([unit.gap_or_none(line.sampled)] if sampled else []))
        for line in found.power
    ]
    print(f"smallest target minus control that gives the verdict transfer with about {POWER:.0%} probability:")
    heading = ("seeds per arm", "exact", *([f"{POWER_ANSWERS} answers per question"] if sampled else []))
    print(f"{table(heading, lines)}\n")


def warn_of_arms(found: ArmComparison) -> None:
    """Warn of arms with many non-answers and of arms with one seed."""
    for role, arm in found.shares.items():
        if arm.non_answers > COLLAPSED:
            kinds = ", ".join(f"{kind} {percent(mass)}" for kind, mass in arm.non_answer_kinds.items())
            say(f"{role}: {percent(arm.non_answers)} of the answers name no animal ({kinds}): read some of them")
    if any(arm.seeds == 1 for role, arm in found.shares.items() if role != "base"):
        say("an arm has one training seed: its interval covers the questions only; another seed may give another share")


def placebo_words(animal: str, found: Placebo) -> str:
    """The placebo test in one sentence."""
    names = [*found.furthest, *["..."] * (found.further > len(found.furthest))]
    return (
        f"placebo: {animal} rose by {found.shift:+.2f} nats of log-probability over the other-animal students; of"
        f" {found.animals} animals never used as a target, {found.further or 'none'} rose at least as much"
        f"{' (' + ', '.join(names) + ')' if names else ''}, p {p_value(found.p)}"
    )


def assignment_words(found: AssignmentTest) -> str:
    """The assignment test in one sentence."""
    return (
        f"{found.as_well:,} of {found.assignments:,} assignments of animals to students fit{'s' * (found.as_well == 1)}"
        f" the margins at least as well as the true one (itself included), p {found.p:.2g}; the margins sum to"
        f" {found.sum.true:.2f} nats (best other assignment {found.sum.best_other:.2f}; mean of all"
        f" {found.sum.mean:.2f}, sd {found.sum.sd:.2f}); {found.own_highest} of {len(found.animals)} animals are"
        " highest in their own students"
    )


def show_pairwise(rows: Sequence[PairwiseRow], measure: str) -> None:
    """Print the share or margin of every trained animal in every arm."""
    lines = [(row.arm, *map(UNITS[measure].of, row.shares.values())) for row in rows]
    print(f"{table(('arm', *rows[0].shares), lines)}\n")


def verdict_words(found: ArmComparison) -> str:
    """The verdict, with the adjusted p-value (several animals) and that of the placebo test."""
    said = [] if found.p_holm is None else [f"Holm p {p_value(found.p_holm)}"]
    said += [f"placebo p {found.placebo.p:.2g}"] if found.placebo else []
    return found.verdict + (f" ({', '.join(said)})" if said else "")
