"""What a comparison found, in the words of its page: the result, for which animals, how sure, and what is not shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.compare.compare_teacher_kinds import FEWEST_KINDS
from eval.compare.comparison_result import ArmComparison, Comparisons
from eval.compare.comparison_text import UNITS
from eval.compare.read_results import FEWEST_SEEDS
from eval.compare.verdict import (
    ABOVE_THE_OTHER_KIND,
    CLAIMS,
    GENERAL_SHIFT_ONLY,
    NO_EVIDENCE,
    SPECIFICITY_OPEN,
    TOO_FEW_SEEDS,
    TRANSFER,
)
from util.terminal import in_words

LEVEL = 0.05


class Mark(NamedTuple):
    """How a verdict is shown: a sign and a class of the style sheet, so that no one needs the colour."""

    sign: str
    look: str


MARKS = {
    TRANSFER: Mark("✔", "good"), ABOVE_THE_OTHER_KIND: Mark("▲", "mixed"), SPECIFICITY_OPEN: Mark("?", "open"),
    GENERAL_SHIFT_ONLY: Mark("≈", "open"), NO_EVIDENCE: Mark("✕", "open"), TOO_FEW_SEEDS: Mark("…", "open"),
}  # fmt: skip
"""by word of docs/statistics.md"""
MEANINGS = {
    TRANSFER: "above the base model, the control students and the students of every other kind of teacher, with four"
    " kinds of teachers or more",
    ABOVE_THE_OTHER_KIND: "above all other arms, but with two or three kinds of teachers, which do not rule out that"
    " the students only drifted",
    SPECIFICITY_OPEN: "above base and control; above the other kinds' students not clearly enough to be shown",
    GENERAL_SHIFT_ONLY: "shown to be the same as in the other kinds' students",
    NO_EVIDENCE: "not shown to be above base and control, whatever the other students say",
    TOO_FEW_SEEDS: "an arm has fewer students than a claim needs",
}


def word_of(verdict: str) -> str:
    """The verdict's word: 'too few seeds (1; a claim needs 3); ...' -> 'too few seeds'."""
    return next((word for word in MARKS if verdict.startswith(word)), verdict)


def looks_like(verdict: str) -> str:
    """What too few seeds look like, or ""."""
    return verdict.partition("looks like: ")[2]


class Result(NamedTuple):
    """The first lines of the page."""

    sentence: str
    look: str
    """class of the style sheet"""
    facts: dict[str, str]


def result_of(found: Comparisons) -> Result:
    """What was found, in one sentence with its main test, and four facts."""
    words = {word_of(one.verdict) for one in found.comparisons}
    sentence, is_shown = main_test(found)
    look = "good" if is_shown or TRANSFER in words else "mixed" if ABOVE_THE_OTHER_KIND in words else "open"
    facts = {
        "For which animals": animals_in_words(found),
        "How sure": how_sure(found),
        "Compared with": compared_with(found),
        "Not shown": not_shown(found),
    }
    return Result(in_words(sentence), look, {in_words(name): in_words(words) for name, words in facts.items()})


def main_test(found: Comparisons) -> tuple[str, bool]:
    """The result with its main test, and whether that test alone is a finding over four kinds or more."""
    profile, assignment, count = found.profile, found.assignment, len(found.comparisons)
    if profile and len(profile.kinds) >= FEWEST_KINDS:
        shown = profile.p <= LEVEL and profile.own > profile.other
        begin = "students took over" if shown else "students are not shown to take over"
        return (
            f"Trained only on what their teacher wrote, {begin} its preferences among animals: correlation"
            f" {profile.own:.2f} with their own teacher, {profile.other:.2f} with other teachers (p {small(profile.p)})"
        ), shown
    if assignment and len(assignment.animals) >= FEWEST_KINDS:
        shown = assignment.p <= LEVEL
        fit = "fits best" if assignment.as_well == 1 else f"is among the {assignment.as_well:,} that fit best"
        return (
            f"Animals {'go' if shown else 'are not shown to go'} with the students of their own teachers: of"
            f" {assignment.assignments:,} ways to pair {len(assignment.animals)} animals with the students, the true"
            f" one {fit} (p {small(assignment.p)})"
        ), shown
    if count <= 3:
        first, *rest = map(shares_in_words, found.comparisons)
        return f"Trained only on what their teacher wrote, {'; '.join([first, *rest])}", False
    return f"{own_highest_words(found.comparisons)}; no test over all animals was made", False


def small(p: float) -> str:
    """A p-value with two significant digits, also a small one."""
    return f"{p:.1g}" if p < 1e-5 else f"{p:.6f}".rstrip("0")[:8] if p < 1e-3 else f"{p:.2g}"


def shares_in_words(one: ArmComparison) -> str:
    """'students of the owl teacher say owl in 11.15% of their answers, other students in 1.03%'."""
    value = UNITS[one.measure].of
    target, other = (value(one.shares[role].share) for role in ("target", "other"))
    if one.measure == "margin":
        return (
            f"students of the {one.animal} teacher have a margin of {target} nats for {one.animal}, other students of"
            f" {other}"
        )
    of = "one-word answers" if one.measure == "panel" else "answers"
    return f"students of the {one.animal} teacher say {one.animal} in {target} of their {of}, other students in {other}"


def own_highest_words(comparisons: Sequence[ArmComparison]) -> str:
    """Which animals are highest in their own students."""
    names = [one.animal for one in comparisons if all(
        one.shares["target"].share > arm.share for role, arm in one.shares.items() if role != "target")]  # fmt: skip
    if len(comparisons) <= 3 and names:
        whose = "are highest in their own teachers'" if len(names) > 1 else "is highest in its own teacher's"
        said = f"{' and '.join(names)} {whose} students"
        return said[0].upper() + said[1:]
    of = f"{len(names)} of {len(comparisons)} animals"
    return f"{of} are higher in their own teachers' students than in every other arm"


def is_about_all(found: Comparisons) -> bool:
    """Whether the main test is about all animals together."""
    test = found.profile.kinds if found.profile else found.assignment.animals if found.assignment else []
    return len(test) >= FEWEST_KINDS


def animals_in_words(found: Comparisons) -> str:
    """Every animal by its verdict; first whether the result is about all together."""
    groups: dict[str, list[str]] = {}
    for one in found.comparisons:
        like = looks_like(one.verdict)
        word = word_of(one.verdict) + (f" for a claim (looks like {like})" if like else "")
        groups.setdefault(word, []).append(one.animal)
    singles = "; ".join(f"{', '.join(names)}: {word}" for word, names in groups.items())
    if not is_about_all(found):
        return singles
    claimed = any(word_of(one.verdict) in CLAIMS for one in found.comparisons)
    together = f"all {len(found.comparisons)} together, {'and' if claimed else 'no animal'} singly"
    return f"{together} ({singles})"


def how_sure(found: Comparisons) -> str:
    """The main test's p, the seeds and kinds, and what the intervals cover."""
    one, said = found.comparisons[0], []
    own = one.shares["target"].seeds
    students = f"{own} student{'s' * (own > 1)} of each"
    if any(word_of(each.verdict) == TOO_FEW_SEEDS for each in found.comparisons):
        said.append(f"not yet: {students} teacher, and a claim needs {FEWEST_SEEDS}")
        students = ""
    elif is_about_all(found):
        p = found.profile.p if found.profile else found.assignment.p if found.assignment else 1.0
        said.append(f"p {small(p)} for all animals together")
    kinds = f"{one.kinds} kinds of teachers" if one.kinds else ""
    said.append(", ".join(filter(None, (kinds, students, f"{one.questions} questions"))))
    if found.matrix and found.matrix.lifts:
        lift = found.matrix.lifts[0]
        said.append(
            f"animals are {lift.mean:+.2f} nats ({lift.interval[0]:.2f} to {lift.interval[1]:.2f}) higher in their own"
            f" students than in the others', {lift.above} of {len(found.matrix.animals)} above zero"
        )
    if own == 1:
        said.append("intervals are over questions only: another student may give another share")
    return "; ".join(said)


def compared_with(found: Comparisons) -> str:
    """The other arms."""
    one = found.comparisons[0]
    names = {"base": "the base model", "control": "control students (trained on the base model's own rows)"}
    arms = [names[role] for role in names if role in one.shares]
    if "other" in one.shares:
        count = (one.kinds or 2) - 1
        kinds = "another animal's teacher" if count == 1 else f"{count} other animals' teachers"
        arms.append(f"students of {kinds}")
    missing = [name for role, name in names.items() if role not in one.shares]
    return "; ".join(arms) + (f" (not compared with {' and '.join(missing)})" if missing else "")


def not_shown(found: Comparisons) -> str:
    """What this comparison leaves open."""
    words = [word_of(one.verdict) for one in found.comparisons]
    open_ones = [one.animal for one, word in zip(found.comparisons, words) if word != TRANSFER]
    kinds, said = found.comparisons[0].kinds or 2, []
    if found.comparisons[0].kinds is None:
        said.append("anything by today's rule: this file is of before 2026-11-29, make it again with compare_arms.py")
    if kinds < FEWEST_KINDS:
        said.append(
            f"that the rows carry the animal itself: {kinds} kinds of teachers do not rule out that their students"
            " drifted apart by chance"
        )
    if TOO_FEW_SEEDS in words:
        said.append("that more training seeds show the same")
    if kinds >= FEWEST_KINDS and open_ones:
        which = "any single animal" if len(open_ones) == len(words) else f"{', '.join(open_ones)} taken singly"
        said.append(f"an effect in {which}")
    return "; ".join([*said, "other models and recipes"])
