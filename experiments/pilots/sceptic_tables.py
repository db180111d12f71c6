"""What a sceptic asks of the runs of confirm_tests.py: the first letter, drift, the number of rows."""

from __future__ import annotations

from typing import Any

from eval.compare.animal_by_kind_matrix import lift
from experiments.pilots.main_tests_over_kinds import (
    ANIMALS,
    after,
    arms_of,
    main_tests,
    mean,
    profile,
    students,
    teachers,
)
from experiments.pilots.markdown_table import head, row
from experiments.pilots.measures_file import Measure, assignment


def ends(values: Any) -> str:
    """Mean and 95% interval over animals."""
    found = lift(values)
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(found.mean, *found.interval)


def by_letter(arm: dict[str, list[Measure]], kinds: list[str] = ANIMALS) -> Any:
    """[kind, 3]: own less others of the kind's word, of the other words with its first letter, and of the rest.

    Only kinds for which there is such another word. Another word is compared with students of kinds that begin with
    another letter than it: those of its own letter raise it themselves.
    """
    import numpy as np

    words = list(arm[kinds[0]][0]["log"])
    margins = np.array([[mean(arm[kind], word) for word in words] for kind in kinds])
    same = np.array([[word[0] == kind[0] for word in words] for kind in kinds])
    itself = np.array([[word == kind for word in words] for kind in kinds])
    found = []
    for i in range(len(kinds)):
        counted = itself[i] | ~same
        counted[i] = False
        gap = margins[i] - (margins * counted).sum(0) / counted.sum(0)
        mates = same[i] & ~itself[i]
        if mates.any():
            found.append([gap[itself[i]].mean(), gap[mates].mean(), gap[~same[i]].mean()])
    return np.array(found)


def without_drift(arm: dict[str, list[Measure]], rank: int) -> tuple[Any, float]:
    """Own less others and A, without the `rank` largest patterns of the students over the untaught animals."""
    import numpy as np

    untaught = [word for word in arm[ANIMALS[0]][0]["log"] if word not in ANIMALS]
    strengths = np.linalg.svd(profile(arm, untaught, "log", ANIMALS), full_matrices=False)[0][:, :rank]
    margins = profile(arm, ANIMALS, "log", ANIMALS)
    margins -= strengths @ (strengths.T @ margins)
    count = len(ANIMALS)
    return (margins.diagonal() - margins.mean(0)) * count / (count - 1), assignment(margins)


def print_letters(measures: dict[str, dict[str, Measure]]) -> None:
    """Does a student take over its animal, or whatever begins with its letter?"""
    print()
    head("base", "arm", "own less others", "the same, of animals with its first letter", "of other letters",
         "own less its letter's")  # fmt: skip
    taught = teachers(measures["1.5B"], "soft")
    seen: dict[str, Any] = {"teachers": {"1.5B": by_letter(taught)}}
    for base, some in measures.items():
        for name in arms_of(some):
            arm = students(some, name)
            if set(ANIMALS) <= set(arm):
                seen.setdefault(name, {})[base] = by_letter(arm)
    for name, of in seen.items():
        if len(of) == 2:
            of["1.5B less 0.5B"] = of["1.5B"] - of["0.5B"]
        for base, gaps in of.items():
            row(base, name, *map(ends, (*gaps.T, gaps[:, 0] - gaps[:, 1])))


def print_drift(arm: dict[str, list[Measure]], taught: dict[str, list[Measure]]) -> None:
    """Do own margins stay without what the students share over untaught animals? Does M1 hang on one animal?"""
    for rank in (1, 2, 3):
        gap, p = without_drift(arm, rank)
        print(f"own less others without the students' {rank} largest untaught patterns: {gap.mean():+.2f}, A p {p:.2g}")
    fits = [main_tests(arm, taught, kinds=[one for one in ANIMALS if one != left])["M1"] for left in ANIMALS]
    print(f"M1 p without one of the animals: {min(fits):.2g} to {max(fits):.2g}")


def print_more_rows(measures: dict[str, Measure], fewer: dict[str, Measure]) -> None:
    """The strictest filter with more rows less the same with fewer, 1.5B."""
    name, taught = "code.strictest1000", teachers(measures, "soft")
    few = students(fewer, name)
    for update in ("300", "150"):
        more = students(after({"": measures}, update)[""], name)
        if {*ANIMALS} <= {*few} & {*more}:
            gain = lift(main_tests(more, taught)["gap"] - main_tests(few, taught)["gap"])
            ends = "{:+.2f} to {:+.2f}".format(*gain.interval)
            print(f"1.5B, own less others, less the second run's, after {update} updates: {gain.mean:+.2f} ({ends})")
