"""Compare the arms of one or several animals: differences, intervals, power and verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.compare.intervals import (
    LEVEL,
    Spread,
    difference_interval,
    holm,
    p_above,
    share_interval,
    smallest_target,
)
from eval.compare.results import (
    FEWEST_SEEDS,
    Arms,
    Result,
    arm_spread,
    check_seeds,
    left_open,
)

if TYPE_CHECKING:
    pass
from eval.compare.untaught_animals import placebo

ROLES = ("base", "control", "other", "target")


POWER_SEEDS = (3, 5, 8, 12)


POWER_ANSWERS = 100


def compare(
    animal: str,
    arms: Arms,
    measure: str = "share",
    taught: Collection[str] = (),
    others: Mapping[str, list[Result]] | None = None,
    tests: int = 1,
) -> dict[str, Any]:
    """Shares (or margins) of the arms, differences of the target to each other arm, their intervals, p-values and the
    verdict. taught: all animals that a teacher was trained on; without them there is no placebo. others: the students
    of the other arm by their animal; of two or more, each also stands for itself: in their mean one that says the
    animal as often would be hidden. tests: how many p-values are adjusted together (Holm), which the power allows for.
    """
    questions = arms["base"][0].questions
    for role in ROLES[1:]:
        check_seeds(arms[role])
    spreads = {role: arm_spread(arms[role], animal, questions, measure) for role in ROLES}
    target = spreads["target"]
    each = {f"{name} students": arm_spread(some, animal, questions, measure) for name, some in (others or {}).items()}
    each = each if len(each) > 1 else {}
    below = {role: spreads[role] for role in ROLES[:-1]} | each
    differences: dict[str, dict[str, Any]] = {
        role: {
            "difference": target.share - spread.share,
            "interval": difference_interval(target, spread),
            "p": p_above(target, spread),
        }
        for role, spread in below.items()
    }
    return {
        "animal": animal,
        "measure": measure,
        "questions": len(questions),
        "shares": {role: describe_arm(arms[role], spreads[role]) for role in ROLES},
        "target_minus": differences,
        "p": max(found["p"] for found in differences.values()),
        "verdict": verdict({role: spread.seeds for role, spread in {**below, "target": target}.items()}, differences),
        "power": power(
            target, {role: below[role] for role in ("base", "control", *(each or ["other"]))}, measure, tests
        ),
        "placebo": placebo(animal, arms, taught) if taught else None,
        "by_question": {"question": list(questions)} | {role: spreads[role].by_question.tolist() for role in ROLES},
    }


def describe_arm(results: Sequence[Result], spread: Spread) -> dict[str, Any]:
    """What a table says of an arm."""
    silent: Counter[str] = Counter()
    for result in results:
        silent.update(result.silent)
    kinds = {kind: mass / len(results) for kind, mass in silent.most_common() if mass > 0}
    return {
        "share": spread.share,
        "interval": share_interval(spread),
        "seeds": len(results),
        "answers": spread.answers,
        "uncovered": left_open(results),
        "non_answers": sum(kinds.values()),
        "non_answer_kinds": kinds,
        "files": [str(result.path) for result in results],
    }


def verdict(seeds: dict[str, int], differences: dict[str, dict[str, Any]]) -> str:
    """The rule. *Transfer*: the target is above base, control and other (of several other animals: above each), all
    intervals clear of zero, and every trained arm has 3 seeds. *General shift only*: above base and control, but not
    above other. Else *no evidence*.

    All must hold, so the chance of a false *transfer* is at most that of one interval (an intersection-union test),
    whatever the number of arms.
    """
    above = {role: found["interval"][0] > 0 for role, found in differences.items()}
    if not (above["base"] and above["control"]):
        found = "no evidence"
    else:
        found = "transfer" if all(above.values()) else "general shift only"
    fewest = min(count for role, count in seeds.items() if role != "base")
    if fewest < FEWEST_SEEDS:
        return f"too few seeds ({fewest}; a claim needs {FEWEST_SEEDS}); on these it looks like: {found}"
    return found


def power(target: Spread, below: dict[str, Spread], measure: str, tests: int = 1) -> list[dict[str, Any]]:
    """How large target minus control would have to be for a verdict of transfer with about 80% probability, by seeds an
    arm: exactly measured, and (shares) by samples; [] where one seed an arm shows no spread between seeds. Among
    several tests it has to be the clearest of all, at the level of Holm's first step."""
    trained = [target, *(spread for role, spread in below.items() if role != "base")]
    if min(spread.seeds for spread in trained) < 2:
        return []

    def above_control(seeds: int, answers: int | None = None) -> float | None:
        needed = smallest_target(target, list(below.values()), seeds, answers, 1 - (1 - LEVEL) / tests)
        return None if needed is None else needed - below["control"].share

    return [
        {"seeds": seeds, "exact": above_control(seeds)}
        | ({"sampled": above_control(seeds, POWER_ANSWERS)} if measure == "share" else {})
        for seeds in POWER_SEEDS
    ]


def compare_all(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[dict[str, Any]]:
    """Each animal as the target, the students of all other animals as its other arm; p-values adjusted by Holm."""
    found = []
    for animal, targets in students.items():
        others = {other: results for other, results in students.items() if other != animal}
        pooled = [result for results in others.values() for result in results]
        arms = {"base": [base], "control": control, "other": pooled, "target": targets}
        found.append(compare(animal, arms, measure, students, others, len(students)))
    adjust(found)
    return found


def adjust(found: Sequence[dict[str, Any]]) -> None:
    """Adjust the p-values of comparisons that belong together (Holm): what is transfer alone and not among so many is
    no evidence."""
    for one, adjusted in zip(found, holm([one["p"] for one in found])):
        one["p_holm"] = adjusted
        if one["verdict"].endswith("transfer") and adjusted > 1 - LEVEL:
            one["verdict"] = one["verdict"].removesuffix("transfer") + "no evidence"


def pairwise(
    base: Result, control: list[Result], students: dict[str, list[Result]], measure: str = "share"
) -> list[dict[str, Any]]:
    """Share (or margin) of every trained animal (columns) in every arm (rows)."""
    arms = {"base": [base], "control": control, **{f"{animal} students": some for animal, some in students.items()}}
    return [
        {"arm": name, "shares": {a: arm_spread(results, a, base.questions, measure).share for a in students}}
        for name, results in arms.items()
    ]
