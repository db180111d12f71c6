"""Compare the arms of one or several animals: differences, intervals, power and the rule of the verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from eval.compare.comparability import check_seeds
from eval.compare.compare_teacher_kinds import (
    FEWEST_KINDS,
    SAME,
    Kind,
    KindTest,
    as_shares,
    borrowed_scatter,
    compare_kinds,
    detectable,
    kind_of,
    spread_of_kinds,
)
from eval.compare.comparison_result import Arm, ArmComparison, Difference, PairwiseRow, Power
from eval.compare.intervals import (
    LEVEL,
    Spread,
    difference_interval,
    holm,
    p_above,
    share_interval,
    smallest_target,
)
from eval.compare.moderated_variance import Prior, moderated
from eval.compare.read_results import FEWEST_SEEDS, ROLES, Arms, Result, arm_spread, mean_uncovered, seeds_by_questions
from eval.compare.untaught_rank import untaught_rank

POWER_SEEDS = (3, 5, 8, 12)
POWER_KINDS = (4, 8, 12, 16)
POWER_ANSWERS = 100  # samples of each question
EQUIVALENCE = 0.90  # level of the interval that two one-sided tests at 5% amount to

TRANSFER = "transfer"
ABOVE_THE_OTHER_KIND = "above the other kind"
SPECIFICITY_OPEN = "specificity open"
GENERAL_SHIFT_ONLY = "general shift only"
NO_EVIDENCE = "no evidence"
TOO_FEW_SEEDS = "too few seeds"
CLAIMS = (TRANSFER, ABOVE_THE_OTHER_KIND)


class Against(NamedTuple):
    """The target compared with every other arm."""

    differences: dict[str, Difference]
    equivalent: bool
    """whether the other kinds' students are shown to be within `SAME` of the target"""
    test: KindTest | None
    """with four kinds or more"""
    below: Mapping[str, Spread]
    """the arms that the target has to be above, with seeds as units"""


def compare(
    animal: str,
    arms: Arms,
    measure: str = "share",
    taught: Collection[str] = (),
    others: Mapping[str, list[Result]] | None = None,
    tests: int = 1,
    priors: Mapping[str, Prior | None] | None = None,
) -> ArmComparison:
    """Compare the target with each other arm: differences, intervals, p-values, power and the verdict.

    taught: all animals that a teacher was trained on; without them the animal is not ranked among untaught ones.
    others: the students of the other arm by kind; without them that arm is one kind. With four kinds or more, the
    target included, the kind is the unit (compare_teacher_kinds.py). With three, the target is compared with each
    other kind. tests: how many p-values are adjusted together (Holm); the power allows for that. priors: by role, what
    the other cells of an experiment say of the variance between seeds (two kinds).
    """
    questions = arms["base"][0].questions
    for role in ROLES[1:]:
        check_seeds(arms[role])
    stored = ("control", "target") if others else ROLES[1:]  # with several animals each is the target once
    others = others or {"other": arms["other"]}
    kinds = 1 + len(others)
    spreads = {role: arm_spread(arms[role], animal, questions, measure) for role in ROLES}
    if kinds > 2:  # students of several kinds are not independent of each other
        spreads["other"] = spread_of_kinds(others, animal, questions, measure)
    else:
        spreads = {role: moderated(spread, (priors or {}).get(role)) for role, spread in spreads.items()}
    if kinds >= FEWEST_KINDS:
        found = against_kinds(animal, arms, spreads, others, measure)
    else:
        found = against_each(animal, spreads, others, measure, questions)
    differences, target = found.differences, spreads["target"]
    fewest = min(len(some) for some in (*others.values(), arms["control"], arms["target"]))
    decisive = {role: one for role, one in differences.items() if role != "other" or kinds != 3}
    above = {role: one.interval[0] > 0 for role, one in decisive.items()}
    return ArmComparison(
        animal=animal,
        measure=measure,
        questions=len(questions),
        shares={role: described_arm(arms[role], spreads[role]) for role in ROLES},
        target_minus=differences,
        p=max(one.p for one in decisive.values()),
        verdict=verdict(kinds, fewest, above, found.equivalent),
        power=power_of_kinds(found.test, tests) if found.test else power(target, found.below, measure, tests),
        untaught_rank=untaught_rank(animal, arms, taught) if taught else None,
        by_question={"question": list(questions)} | {role: spreads[role].by_question.tolist() for role in ROLES},
        by_seed={role: by_seed(arms[role], animal, questions, measure) for role in stored},
        kinds=kinds,
        reason=reason(kinds, above, found.equivalent),
    )


def against_kinds(
    animal: str, arms: Arms, spreads: dict[str, Spread], others: Mapping[str, list[Result]], measure: str
) -> Against:
    """The target against base and control over seeds, and against the other kinds with the kind as the unit. An arm
    with fewer than three seeds has the scatter of the seeds of all arms; `spreads` is changed accordingly."""
    questions = arms["base"][0].questions

    def kind(results: Sequence[Result]) -> Kind:
        return kind_of(results, animal, questions, measure)

    target, other_kinds = kind(arms["target"]), [kind(some) for some in others.values()]
    test = compare_kinds(target, other_kinds)
    everyone = [target, *other_kinds, kind(arms["control"])]
    for role in ("control", "target"):
        spreads[role] = borrowed_scatter(spreads[role], everyone, test.between)
    differences = {role: difference(spreads["target"], spreads[role]) for role in ("base", "control")}
    linear = measure == "margin"
    size, ends = (test.difference, test.interval()) if linear else as_shares(test, spreads["target"].share)
    low, high = test.interval(EQUIVALENCE)
    differences["other"] = Difference(size, ends, test.p)
    return Against(differences, low > -SAME and high < SAME, test, {})


def against_each(
    animal: str,
    spreads: Mapping[str, Spread],
    others: Mapping[str, list[Result]],
    measure: str,
    questions: Sequence[str],
) -> Against:
    """The target against every other arm over seeds; of several other kinds against each."""
    target, below = spreads["target"], {role: spreads[role] for role in ROLES[:-1]}
    each = {"other": spreads["other"]}
    if len(others) > 1:
        each = {f"{name} students": arm_spread(some, animal, questions, measure) for name, some in others.items()}
        below |= each
    differences = {role: difference(target, spread) for role, spread in below.items()}
    same = all(is_same(target, spread) for spread in each.values())
    return Against(differences, same, None, {"base": below["base"], "control": below["control"]} | each)


def difference(target: Spread, other: Spread) -> Difference:
    """The target less another arm, with seeds and questions as units."""
    return Difference(target.share - other.share, difference_interval(target, other), p_above(target, other))


def is_same(target: Spread, other: Spread) -> bool:
    """Whether two one-sided tests at 5% show that the arms differ by less than `SAME` nats (log odds)."""
    low, high = difference_interval(target, other, EQUIVALENCE)
    if target.linear:
        return low > -SAME and high < SAME
    if not 0 < other.share < 1:
        return False
    own = math.log(other.share / (1 - other.share))
    least, most = (1 / (1 + math.exp(-(own + step))) - other.share for step in (-SAME, SAME))
    return least < low and high < most


def by_seed(results: Sequence[Result], animal: str, questions: Sequence[str], measure: str) -> list[list[float]]:
    """The value of each question in each file, to six digits."""
    values = seeds_by_questions([result.measured(animal, measure) for result in results], results, questions)
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


def described_arm(results: Sequence[Result], spread: Spread) -> Arm:
    """What the tables show of an arm."""
    masses: Counter[str] = Counter()
    for result in results:
        masses.update(result.non_answers)
    kinds = {kind: mass / len(results) for kind, mass in masses.most_common() if mass > 0}
    return Arm(
        share=spread.share,
        interval=share_interval(spread),
        seeds=len(results),
        answers=spread.answers,
        uncovered=mean_uncovered(results),
        non_answers=sum(kinds.values()),
        non_answer_kinds=kinds,
        files=[str(result.path) for result in results],
    )


# --- the rule ----------------------------------------------------------------------------------------


def verdict(kinds: int, seeds: int, above: Mapping[str, bool], equivalent: bool = False) -> str:
    """The rule of the verdict.

    *Transfer* (four kinds or more) and *above the other kind* (two or three): the target is above base, control and the
    other kinds' students; all intervals are above zero. All conditions must hold, so the chance of a false claim is at
    most that of one interval (an intersection-union test). *General shift only*: above base and control, and shown to
    be equivalent to the other kinds' students. *Specificity open*: above base and control, and neither. Otherwise *no
    evidence*. *Too few seeds*: with two or three kinds, an arm has fewer than three.

    kinds: number of kinds, with the target's. seeds: of the trained arm that has fewest. above: of each other arm,
    whether the interval of the target less that arm is above zero.
    """
    if not (above["base"] and above["control"]):
        found = NO_EVIDENCE
    elif all(above.values()):
        found = TRANSFER if kinds >= FEWEST_KINDS else ABOVE_THE_OTHER_KIND
    else:
        found = GENERAL_SHIFT_ONLY if equivalent else SPECIFICITY_OPEN
    if kinds < FEWEST_KINDS and seeds < FEWEST_SEEDS:  # with the kind as the unit one seed a kind is enough
        return f"{TOO_FEW_SEEDS} ({seeds}; a claim needs {FEWEST_SEEDS}); on these it looks like: {found}"
    return found


def reason(kinds: int, above: Mapping[str, bool], equivalent: bool) -> str:
    """What the verdict rests on, in one clause."""
    arms = [role if role in ("base", "control") else "the other kinds' students" for role in above]
    names = list(dict.fromkeys(arms))
    cleared = {name: all(above[role] for role, arm in zip(above, arms) if arm == name) for name in names}
    yes, no = ([name for name in names if cleared[name] is flag] for flag in (True, False))
    parts = {
        f"above {' and '.join(yes)}": bool(yes),
        f"not shown to be above {' or '.join(no)}": bool(no),
        f"within {SAME} nats of the other kinds' students": equivalent,
        f"{kinds} kinds do not rule out that these students only drifted": kinds < FEWEST_KINDS and not no,
    }
    return "; ".join(part for part, holds in parts.items() if holds)


# --- power -------------------------------------------------------------------------------------------


def power(target: Spread, below: Mapping[str, Spread], measure: str, tests: int = 1) -> list[Power]:
    """The target minus control that gives a claim with about 80% probability, by seeds per arm: measured exactly and,
    for shares, by samples. [] if an arm has one seed, which shows no scatter between seeds. With several tests the
    level is that of Holm's first step."""
    trained = [target, *(spread for role, spread in below.items() if role != "base")]
    if min(spread.seeds for spread in trained) < 2:
        return []

    def above_control(seeds: int, answers: int | None = None) -> float | None:
        needed = smallest_target(target, list(below.values()), seeds, answers, 1 - (1 - LEVEL) / tests)
        return None if needed is None else needed - below["control"].share

    return [
        Power(seeds, above_control(seeds), above_control(seeds, POWER_ANSWERS) if measure == "share" else None)
        for seeds in POWER_SEEDS
    ]


def power_of_kinds(test: KindTest, tests: int = 1) -> list[Power]:
    """The target less the other kinds' students (nats or log odds) that gives *transfer* with 80% probability, by the
    number of kinds, if these scatter as the present ones do."""
    return [Power(kinds=kinds, above_others=detectable(test.between, kinds, tests)) for kinds in POWER_KINDS]


# --- several animals ---------------------------------------------------------------------------------


def compare_all(
    base: Result,
    control: list[Result],
    students: dict[str, list[Result]],
    measure: str = "share",
    neutral: Mapping[str, list[Result]] | None = None,
) -> list[ArmComparison]:
    """Compare each animal as the target, with all other kinds' students as its other arm; p adjusted by Holm.

    students: by the animal of their teacher. neutral: students of teachers of no animal, by the name of their words.
    """
    found = []
    for animal, targets in students.items():
        others = {kind: results for kind, results in {**students, **(neutral or {})}.items() if kind != animal}
        pooled = [result for results in others.values() for result in results]
        arms = {"base": [base], "control": control, "other": pooled, "target": targets}
        found.append(compare(animal, arms, measure, students, others, len(students)))
    return adjusted(found)


def adjusted(found: Sequence[ArmComparison]) -> list[ArmComparison]:
    """The comparisons with their p-values adjusted together (Holm), and the verdicts that follow from these.

    With four kinds or more the p-values are those over the other kinds' students: what is claimed of several animals is
    that each is special to its kind. Base and control have to be cleared besides, each at its own level.
    """
    p_values = holm([claimed_p(one) for one in found])
    return [adjusted_verdict(replace(one, p_holm=p), p) for one, p in zip(found, p_values)]


def claimed_p(found: ArmComparison) -> float:
    """The p-value that is adjusted for the number of animals."""
    return found.target_minus["other"].p if (found.kinds or 0) >= FEWEST_KINDS else found.p


def adjusted_verdict(found: ArmComparison, p_holm: float) -> ArmComparison:
    """The comparison with its final verdict: a claim becomes *specificity open* if the adjusted p-value is above 5%."""
    claim = next((one for one in CLAIMS if found.verdict.endswith(one)), None)
    if claim is None or p_holm <= 1 - LEVEL:
        return found
    verdict = found.verdict.removesuffix(claim) + SPECIFICITY_OPEN
    return replace(found, verdict=verdict, reason=f"{found.reason}, but not after Holm")


def pairwise(
    base: Result,
    control: list[Result],
    students: dict[str, list[Result]],
    measure: str = "share",
    neutral: Mapping[str, list[Result]] | None = None,
) -> list[PairwiseRow]:
    """The share (or margin) of every trained animal in every arm."""
    kinds = {f"{kind} students": some for kind, some in {**students, **(neutral or {})}.items()}
    arms = {"base": [base], "control": control, **kinds}
    return [
        PairwiseRow(name, {a: arm_spread(results, a, base.questions, measure).share for a in students})
        for name, results in arms.items()
    ]
