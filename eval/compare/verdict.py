"""Compare the arms of one or several animals: differences, intervals, power and the rule of the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from eval.compare.comparability import check_seeds
from eval.compare.comparison_result import Arm, ArmComparison, Difference, PairwiseRow, Power
from eval.compare.intervals import (
    LEVEL,
    Ends,
    Spread,
    difference_interval,
    holm,
    p_above,
    share_interval,
    smallest_target,
)
from eval.compare.placebo import placebo
from eval.compare.read_results import FEWEST_SEEDS, ROLES, Arms, Result, arm_spread, mean_uncovered

POWER_SEEDS = (3, 5, 8, 12)
POWER_ANSWERS = 100  # samples of each question


def compare(
    animal: str,
    arms: Arms,
    measure: str = "share",
    taught: Collection[str] = (),
    others: Mapping[str, list[Result]] | None = None,
    tests: int = 1,
) -> ArmComparison:
    """Compare the target with each other arm: differences, intervals, p-values, power and the verdict.

    taught: all animals that a teacher was trained on; without them there is no placebo test. others: the students of
    the other arm by animal. With two animals or more the target is also compared with each of them: their mean would
    hide one whose students name the animal as often as the target's. tests: how many p-values are adjusted together
    (Holm); the power allows for that.
    """
    questions = arms["base"][0].questions
    for role in ROLES[1:]:
        check_seeds(arms[role])
    spreads = {role: arm_spread(arms[role], animal, questions, measure) for role in ROLES}
    target = spreads["target"]
    each = {f"{name} students": arm_spread(some, animal, questions, measure) for name, some in (others or {}).items()}
    each = each if len(each) > 1 else {}
    below = {role: spreads[role] for role in ROLES[:-1]} | each
    differences = {
        role: Difference(target.share - spread.share, difference_interval(target, spread), p_above(target, spread))
        for role, spread in below.items()
    }
    seeds = {role: spread.seeds for role, spread in {**below, "target": target}.items()}
    named = {role: below[role] for role in ("base", "control", *(each or ["other"]))}
    return ArmComparison(
        animal=animal,
        measure=measure,
        questions=len(questions),
        shares={role: described_arm(arms[role], spreads[role]) for role in ROLES},
        target_minus=differences,
        p=max(found.p for found in differences.values()),
        verdict=verdict(seeds, {role: found.interval for role, found in differences.items()}),
        power=power(target, named, measure, tests),
        placebo=placebo(animal, arms, taught) if taught else None,
        by_question={"question": list(questions)} | {role: spreads[role].by_question.tolist() for role in ROLES},
    )


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


def verdict(seeds: Mapping[str, int], intervals: Mapping[str, Ends]) -> str:
    """The rule of the verdict.

    *Transfer*: the target is above base, control and other (with several other animals: above each), all intervals are
    above zero, and every trained arm has 3 seeds or more. *General shift only*: above base and control, but not above
    other. Otherwise *no evidence*. All conditions must hold for transfer, so the chance of a false transfer is at most
    that of one interval, for any number of arms (an intersection-union test).

    seeds: number of seeds of each arm. intervals: of the target less each other arm.
    """
    above = {role: low > 0 for role, (low, _) in intervals.items()}
    if not (above["base"] and above["control"]):
        found = "no evidence"
    else:
        found = "transfer" if all(above.values()) else "general shift only"
    fewest = min(count for role, count in seeds.items() if role != "base")
    if fewest < FEWEST_SEEDS:
        return f"too few seeds ({fewest}; a claim needs {FEWEST_SEEDS}); on these it looks like: {found}"
    return found


def power(target: Spread, below: Mapping[str, Spread], measure: str, tests: int = 1) -> list[Power]:
    """The target minus control that gives the verdict transfer with about 80% probability, by seeds per arm: measured
    exactly and, for shares, by samples. [] if an arm has one seed, which shows no scatter between seeds. With several
    tests the level is that of Holm's first step."""
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


# --- several animals ---------------------------------------------------------------------------------


def compare_all(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[ArmComparison]:
    """Compare each animal as the target, with all other animals' students as its other arm; p adjusted by Holm."""
    found = []
    for animal, targets in students.items():
        others = {other: results for other, results in students.items() if other != animal}
        pooled = [result for results in others.values() for result in results]
        arms = {"base": [base], "control": control, "other": pooled, "target": targets}
        found.append(compare(animal, arms, measure, students, others, len(students)))
    return adjusted(found)


def adjusted(found: Sequence[ArmComparison]) -> list[ArmComparison]:
    """The comparisons with their p-values adjusted together (Holm), and the verdicts that follow from these."""
    p_values = holm([one.p for one in found])
    return [replace(one, p_holm=p, verdict=adjusted_verdict(one.verdict, p)) for one, p in zip(found, p_values)]


def adjusted_verdict(verdict: str, p_holm: float) -> str:
    """The verdict: transfer becomes no evidence if the adjusted p-value is above 5%."""
    if verdict.endswith("transfer") and p_holm > 1 - LEVEL:
        return verdict.removesuffix("transfer") + "no evidence"
    return verdict


def pairwise(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[PairwiseRow]:
    """The share (or margin) of every trained animal in every arm."""
    arms = {"base": [base], "control": control, **{f"{animal} students": some for animal, some in students.items()}}
    return [
        PairwiseRow(name, {a: arm_spread(results, a, base.questions, measure).share for a in students})
        for name, results in arms.items()
    ]
