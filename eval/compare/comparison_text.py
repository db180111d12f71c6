"""A comparison of arms as text: tables, the verdict, and a sentence for each test over all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.compare.compare_teacher_kinds import FEWEST_KINDS
from eval.compare.comparison_result import (
    ArmComparison,
    AssignmentTest,
    Comparisons,
    Lift,
    Matrix,
    PairwiseRow,
    Power,
    ProfileTest,
    UntaughtRank,
)
from eval.compare.intervals import POWER, Ends
from eval.compare.statistics_as_text import p_value, percent
from eval.compare.verdict import POWER_ANSWERS
from util.pages.figure_style import ARMS
from util.terminal import in_words, say, table

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
    if found.untaught_rank:
        print(f"{untaught_rank_words(found.animal, found.untaught_rank)}\n")
    warn_of_arms(found)


def show_power(found: ArmComparison) -> None:
    """Print the smallest difference that a number of seeds, or of kinds, detects."""
    unit, sampled = UNITS[found.measure], found.measure == "share"
    if found.power[0].kinds:
        print(f"power: {kind_power_words(found.power)}\n")
        return
    lines = [
        (line.seeds, unit.gap_or_none(line.exact), *([unit.gap_or_none(line.sampled)] if sampled else []))
        for line in found.power
    ]
    print(f"smallest target minus control that is shown with about {POWER:.0%} probability:")
    heading = ("seeds per arm", "exact", *([f"{POWER_ANSWERS} answers per question"] if sampled else []))
    print(f"{table(heading, lines)}\n")


def kind_power_words(lines: Sequence[Power]) -> str:
    """The power of a design with the kind as the unit, in one sentence."""
    sizes = ", ".join(f"{line.above_others:+.2f} with {line.kinds}" for line in lines if line.above_others is not None)
    return (
        "smallest target minus other kinds, in nats or log odds, that is shown with about"
        f" {POWER:.0%} probability: {sizes} kinds"
    )


def warn_of_arms(found: ArmComparison) -> None:
    """Warn of arms with many non-answers and of arms with one seed."""
    for role, arm in found.shares.items():
        if arm.non_answers > COLLAPSED:
            kinds = ", ".join(f"{kind} {percent(mass)}" for kind, mass in arm.non_answer_kinds.items())
            say(f"{role}: {percent(arm.non_answers)} of the answers name no animal ({kinds}): read some of them")
    if any(arm.seeds == 1 for role, arm in found.shares.items() if role != "base"):
        say("an arm has one training seed: its interval covers the questions only; another seed may give another share")


def untaught_rank_words(animal: str, found: UntaughtRank) -> str:
    """The rank among untaught animals in one sentence."""
    names = [*found.furthest, *["..."] * (found.further > len(found.furthest))]
    return in_words(
        f"rank among untaught animals: {animal} rose by {found.shift:+.2f} nats of log-probability over the other"
        f" kinds' students; of {found.animals} animals that nobody was taught, {found.further or 'none'} rose at least"
        " as much"
        f"{' (' + ', '.join(names) + ')' if names else ''}; teachers move these too, so this is not a test"
    )


def profile_line(found: ProfileTest) -> str:
    """The main figures of the profile test."""
    return f"own teacher r {found.own:.2f}, other teachers {found.other:.2f}, p {found.p:.2g}"


def profile_words(found: ProfileTest) -> str:
    """The profile test in one sentence."""
    tried = "all" if found.exact else "random"
    fits = [f"{fit.rank}: {fit.own:.2f} against {fit.other:.2f}, p {fit.p:.2g}" for fit in found.drift_fits]
    # As they are shown: the r of two kinds are equal but for the last bit, which differs between processors.
    least, *_, most = sorted(found.by_kind, key=lambda kind: round(found.by_kind[kind], 2))
    return in_words(
        f"students correlate with their own teacher by {found.own:.2f} and with other teachers by {found.other:.2f},"
        f" over {len(found.animals)} untaught animals and {len(found.kinds)} kinds ({least}"
        f" {found.by_kind[least]:.2f} to {most} {found.by_kind[most]:.2f}; slope {found.slope:.3f}); p {found.p:.2g}"
        f" ({tried} {found.assignments:,} assignments of teachers to students)"
        + (f"; after removing the largest patterns that kinds share, {', '.join(fits)}" if fits else "")
    )


def lift_words(found: Lift) -> str:
    """How far animals are higher in their own students, in one clause."""
    of = "own students minus other kinds'"
    if found.rank is not None:
        shared = f" and of {found.rank} shared pattern{'s' * (found.rank > 1)}" if found.rank else ""
        of = f"the same without the effects of row and column{shared}"
    low, high = found.interval
    return f"{of} {found.mean:+.2f} ({low:.2f} to {high:.2f}), p {p_value(found.p)}, {found.above} above"


def show_matrix(found: Matrix) -> None:
    """Print the table of animals by kinds without the effects of row and column, and the lifts."""
    lines = [
        (f"{kind} students", *(f"{value:+.2f}" for value in row)) for kind, row in zip(found.kinds, found.residuals)
    ]
    print(in_words("animals by kinds, nats or log odds, without the effects of row and column:"))
    print(f"{table(('', *found.animals), lines)}")
    for one in found.lifts:
        print(in_words(f"mean over {len(found.animals)} animals, {lift_words(one)}"))
    print()


def show_tables(found: Comparisons, measure: str) -> None:
    """Print what is about all kinds together."""
    if found.pairwise:
        show_pairwise(found.pairwise, measure)
    if found.matrix:
        show_matrix(found.matrix)
    if found.assignment:
        print(f"assignment: {assignment_words(found.assignment)}\n")
    if found.profile:
        print(f"profile: {profile_words(found.profile)}\n")


def assignment_words(found: AssignmentTest) -> str:
    """The assignment test in one sentence."""
    return in_words(
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


def show_summary(comparisons: Sequence[ArmComparison]) -> None:
    """Print the table of a whole comparison: one line for each animal, with its arms and its verdict."""
    unit = UNITS[comparisons[0].measure]
    lines = [
        (one.animal, *(unit.of(arm.share) for arm in one.shares.values()), one.verdict.partition(" (")[0])
        for one in comparisons
    ]
    titles = [ARMS[role].title for role in comparisons[0].shares]
    print(f"{table((comparisons[0].measure, *titles, 'verdict'), lines)}\n")


def animals_by_verdict(comparisons: Sequence[ArmComparison]) -> dict[str, str]:
    """{verdict: 'owl, dolphin'}, without what is in brackets or follows."""
    groups: dict[str, list[str]] = {}
    for one in comparisons:
        groups.setdefault(one.verdict.partition(" (")[0], []).append(one.animal)
    return {verdict: ", ".join(animals) for verdict, animals in groups.items()}


def verdict_words(found: ArmComparison) -> str:
    """The verdict, with the adjusted p-values (several animals) and what it rests on."""
    over = " over the other kinds' students" if (found.kinds or 0) >= FEWEST_KINDS else ""
    said = [] if found.p_holm is None else [f"Holm p{over} {p_value(found.p_holm)}"]
    said += [found.reason] if found.reason else []
    return found.verdict + (f" ({'; '.join(said)})" if said else "")
